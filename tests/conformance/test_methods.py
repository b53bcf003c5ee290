"""Every check of every method, from the cards: ``pytest tests/conformance -k SLUG`` for one."""

import pytest
import torch

from tests.conformance.harness import Broken, NotApplicable, Unwritten, require
from tests.conformance.plan import FLOORS, kind_of, whole_plan
from tests.conformance.tally import PROPERTY, UNWRITTEN, WAIVED
from tests.conformance.waivers import FILE, read_waivers, require_known
from trialrun.catalogue import slugs

PLAN = whole_plan()


def _param(check):
    return pytest.param(check, id=check.id, marks=[pytest.mark.slow] if check.slow else [])


def _about(slug):
    kind, draft = kind_of(slug)
    planned = sum(1 for check in PLAN if check.slug == slug and not check.slow)
    return kind, draft, FLOORS.get(kind, 0), planned


@pytest.fixture(autouse=True)
def _one_thread():
    # Sums taken by several threads may differ in their last bits from run to run.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def waivers():
    return read_waivers(FILE.read_text(encoding="utf-8"))


@pytest.mark.parametrize("check", [_param(check) for check in PLAN])
def test_method_passes(check, tmp_path, record_property, waivers):
    about = _about(check.slug)
    record_property(PROPERTY, check.slug)
    record_property(f"{PROPERTY} plan", about)
    if check.id in waivers:
        record_property(WAIVED, waivers[check.id].reason)
        try:
            check.run(tmp_path)
        except Exception:  # any failure is what was waived
            return
        require(False, f"{check.id} passes: take out its waiver")
    try:
        check.run(tmp_path)
    except NotApplicable as error:
        pytest.skip(str(error))
    except Unwritten as error:
        if not about[1]:
            raise Broken(f"still to be written: {error}") from None
        record_property(UNWRITTEN, str(error))
        pytest.skip(f"to be written: {error}")


@pytest.mark.parametrize("slug", slugs())
def test_plan_reaches_the_floor_of_its_kind(slug):
    kind, draft, floor, planned = _about(slug)
    require(draft or planned >= floor, f"{slug}: {planned} checks planned, a {kind} needs {floor}")


def test_waivers_excuse_checks_that_exist(waivers):
    require_known(waivers, {check.id for check in PLAN})
