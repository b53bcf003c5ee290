from trialrun.claims.runs import digest_of, run_key


def test_a_folder_is_known_by_what_its_files_hold(tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights").write_bytes(b"one")
    before = digest_of(str(model))
    (model / "weights").write_bytes(b"two")
    assert digest_of(str(model)) != before
    (model / "weights").write_bytes(b"one")
    assert digest_of(str(model)) == before
    (model / "weights").rename(model / "heights")
    assert digest_of(str(model)) != before


def test_a_stated_length_counts_beside_the_folder(tmp_path):
    (tmp_path / "weights").write_bytes(b"one")
    plain, told = digest_of(str(tmp_path)), digest_of(f"{tmp_path}@2048")
    assert len({plain, told, digest_of(f"{tmp_path}@4096")}) == 3
    (tmp_path / "weights").write_bytes(b"two")
    assert digest_of(f"{tmp_path}@2048") != told


def test_a_hub_id_is_known_by_its_name():
    assert digest_of("someone/model") == digest_of("someone/model") != digest_of("other/model")


def test_every_part_of_a_runs_identity_counts():
    identity = {"slug": "d3g", "budget": "quick", "seeds": [0, 1], "versions": {"torch": "2.13"}}
    others = [{**identity, "seeds": [0, 2]}, {**identity, "versions": {"torch": "2.14"}}]
    assert len({run_key(i) for i in (identity, *others)}) == 3
