import math

import pytest
import torch
from torch.nn import functional as F

from tests.naive.famnet import (
    naive_band_masks,
    naive_fam,
    naive_loss,
    naive_map,
    naive_msf,
    naive_prototype,
    naive_resize,
    naive_token_bands,
    naive_tokens,
)
from trialrun.fewshot.famnet import (
    FAMNet,
    FrequencyAwareMatching,
    MultiSpectralFusion,
    PrototypeSegmenter,
    ResNet50Dilated,
    SmallEncoder,
    famnet_loss,
    foreground_tokens,
    masked_average,
    prototype_map,
    radial_masks,
    split_bands,
    split_token_bands,
)

SIZES = (1, 7, 63)


def random(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def blob(rows, columns, share=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, columns, generator=generator) < share
    mask[rows // 2, columns // 2] = True
    return mask


def weights_of(matching):
    parts = {"spt": "fc_spt", "qry": "fc_qry", "fusion": "fc_fusion"}
    inner = matching.attention_matching
    return {
        k: (getattr(inner, v)[0].weight, getattr(inner, v)[0].bias,
            getattr(inner, v)[2].weight, getattr(inner, v)[2].bias)
        for k, v in parts.items()
    }  # fmt: skip


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (1, 7), (7, 7), (8, 6), (30, 30)])
def test_radial_masks_share_nothing_and_leave_nothing(rows, columns):
    masks = radial_masks(rows, columns, 0.3)
    assert bool((masks.sum(0) == 1).all())
    naive = torch.tensor(naive_band_masks(rows, columns, 0.3))
    torch.testing.assert_close(masks.double(), naive.double())


@pytest.mark.parametrize("cutoff", [0.05, 0.3, 0.49])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 7), (8, 6), (30, 30)])
def test_bands_sum_to_the_input_and_are_what_the_full_transform_gives(rows, columns, cutoff):
    x = random(2, rows, columns)
    bands = split_bands(x, cutoff)
    torch.testing.assert_close(sum(bands), x)
    spectrum = torch.fft.fftshift(torch.fft.fft2(x), dim=(-2, -1))
    for band, mask in zip(bands, radial_masks(rows, columns, cutoff)):
        whole = torch.fft.ifft2(torch.fft.ifftshift(spectrum * mask, dim=(-2, -1))).real
        torch.testing.assert_close(band, whole)


@pytest.mark.parametrize("n", SIZES)
def test_token_bands_match_the_slow_twin(n):
    tokens = random(2, n, seed=n)
    fast, slow = split_token_bands(tokens, 0.3), naive_token_bands(tokens, 0.3)
    for a, b in zip(fast, slow):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(sum(fast), tokens)


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(("rows", "columns"), [(5, 9), (16, 12), (4, 4)])
def test_tokens_match_the_slow_twin(n, rows, columns):
    features, mask = random(3, 4, 5, seed=n), blob(rows, columns, seed=n)
    fast = foreground_tokens(features[None], mask[None], n)[0]
    torch.testing.assert_close(fast, naive_tokens(features, mask, n))


def test_tokens_are_pooled_features_at_the_size_of_the_mask():
    features, mask = random(1, 3, 6, 5), blob(24, 20)
    big = F.interpolate(features, size=(24, 20), mode="bilinear")
    listed = big[0][:, mask]
    torch.testing.assert_close(
        foreground_tokens(features, mask[None], 11)[0], F.adaptive_avg_pool1d(listed, 11)
    )


def test_an_organ_of_one_pixel_is_repeated_and_an_empty_one_is_zero():
    features = random(1, 3, 4, 4)
    mask = torch.zeros(1, 16, 16, dtype=torch.bool)
    assert not foreground_tokens(features, mask, 9).any()
    mask[0, 5, 6] = True
    tokens = foreground_tokens(features, mask, 9)
    torch.testing.assert_close(tokens, tokens[..., :1].expand_as(tokens))
    low, middle, high = split_token_bands(tokens, 0.3)
    torch.testing.assert_close(low, tokens)
    torch.testing.assert_close(middle.abs().max() + high.abs().max(), torch.tensor(0.0).double())


def test_a_tiny_organ_gains_low_frequencies_by_repetition():
    features = random(1, 8, 12, 12)
    shares = []
    for side in (2, 12):
        mask = torch.zeros(1, 12, 12, dtype=torch.bool)
        mask[0, :side, :side] = True
        tokens = foreground_tokens(features, mask, 144)
        low, _, high = split_token_bands(tokens - tokens.mean(-1, keepdim=True), 0.3)
        shares.append(float(high.square().sum() / low.square().sum()))
    assert shares[0] < shares[1]


@pytest.mark.parametrize("n", SIZES)
def test_matching_and_its_gradients_match_the_slow_twin(n):
    match = FrequencyAwareMatching(n_tokens=n, seed=3).double()
    fs, fq = random(2, 4, 4, seed=1).requires_grad_(), random(2, 4, 4, seed=2).requires_grad_()
    ms, mq = blob(8, 8, seed=1), blob(8, 8, seed=2)
    fast = torch.cat(match(fs[None], ms[None], fq[None], mq[None]))
    slow = torch.stack(naive_fam(fs, ms, fq, mq, n, 0.3, weights_of(match)))
    torch.testing.assert_close(fast, slow)
    wanted = [fs, fq, *match.parameters()]
    torch.testing.assert_close(
        torch.autograd.grad(fast.square().sum(), wanted, materialize_grads=True),
        torch.autograd.grad(slow.square().sum(), wanted, materialize_grads=True),
    )


@pytest.mark.parametrize("tokens", SIZES)
def test_fusion_matches_the_slow_twin(tokens):
    fuse = MultiSpectralFusion(4, seed=1).double()
    bands = [random(4, tokens, seed=i) for i in range(3)]

    def weights(part):
        layers = (part.query, part.key, part.value)
        return [w for layer in layers for w in (layer.weight, layer.bias)]

    slow = naive_msf(*bands, weights(fuse.CA1), weights(fuse.CA2))
    torch.testing.assert_close(fuse(*(b[None] for b in bands))[0], slow)


def test_prototype_and_map_match_the_slow_twin():
    features, mask = random(3, 4, 5).abs(), blob(9, 11)
    prototype = masked_average(features[None], mask[None].double())
    torch.testing.assert_close(prototype[0], naive_prototype(features, mask.double()))
    tau = torch.tensor([-9.0], dtype=torch.float64)
    made = prototype_map(features[None], prototype, tau, (4, 5))
    torch.testing.assert_close(made[0, 1], naive_map(features, prototype[0], tau[0]))
    torch.testing.assert_close(made.sum(1), torch.ones(1, 4, 5).double())


def test_the_average_under_a_mask_is_that_of_resized_features():
    features, mask = random(2, 3, 4, 6), random(2, 9, 7).sigmoid()
    big = torch.stack([naive_resize(f, 9, 7) for f in features])
    torch.testing.assert_close(big, F.interpolate(features, size=(9, 7), mode="bilinear"))
    slow = (big * mask[:, None]).sum((2, 3)) / (mask.sum((1, 2)) + 1e-5)[:, None]
    torch.testing.assert_close(masked_average(features, mask), slow)


def test_the_loss_matches_the_slow_twin_and_skips_what_is_ignored():
    maps = random(2, 1, 2, 3, 5).softmax(2)
    truth = torch.tensor([[[0, 1, 255, 1, 0], [1, 1, 0, 0, 0], [255, 0, 0, 1, 0]]])
    slow = naive_loss(maps[0, 0], maps[1, 0], truth[0])
    torch.testing.assert_close(famnet_loss(maps[0], maps[1], truth), slow)


def test_the_loss_is_finite_where_a_map_is_sure_and_wrong():
    sure = torch.stack([torch.ones(1, 4, 4), torch.zeros(1, 4, 4)], dim=1).requires_grad_()
    loss = famnet_loss(sure, sure, torch.ones(1, 4, 4))
    loss.backward()
    assert math.isfinite(float(loss.detach()))
    assert bool(torch.isfinite(sure.grad).all())
    everything_ignored = famnet_loss(sure, sure, torch.full((1, 4, 4), 255))
    assert float(everything_ignored.detach()) == 0.0


def test_the_order_of_tokens_matters_and_a_turned_slice_gives_other_bands():
    match = FrequencyAwareMatching(n_tokens=25, seed=0)
    maps = random(1, 6, 8, 8).float()
    mask = blob(32, 32, share=0.5)[None]
    straight = match(maps, mask, maps, mask).middle
    turned = match(maps.rot90(1, (2, 3)), mask.rot90(1, (1, 2)), maps, mask).middle
    assert float((straight - turned).abs().max()) > 1e-3
    tokens = random(1, 25)
    shuffled = tokens[:, torch.randperm(25, generator=torch.Generator().manual_seed(0))]
    middle, other = split_token_bands(tokens, 0.3)[1], split_token_bands(shuffled, 0.3)[1]
    assert float((middle.norm() - other.norm()).abs()) > 1e-3


def test_layouts_agree_where_nothing_is_split_and_differ_where_bands_are():
    maps, mask = random(2, 4, 9, 7).float(), torch.stack([blob(18, 14, seed=i) for i in (1, 2)])
    outs = {}
    for cutoff in (None, 0.3):
        for layout in ("tokens", "grid"):
            match = FrequencyAwareMatching(16, cutoff, layout=layout)
            outs[cutoff, layout] = match(maps, mask, maps.flip(0), mask.flip(0))
    for a, b in zip(outs[None, "tokens"], outs[None, "grid"]):
        torch.testing.assert_close(a, b)
    assert not outs[None, "grid"].low.any()
    assert not torch.allclose(outs[0.3, "tokens"].middle, outs[0.3, "grid"].middle)


def test_grid_bands_of_a_foreground_sum_to_its_tokens():
    maps, mask = random(1, 4, 9, 7), blob(18, 14)[None]
    bands = FrequencyAwareMatching(16, layout="grid").tokens(maps, mask)
    torch.testing.assert_close(sum(bands), foreground_tokens(maps, mask, 16))


def test_weighting_chooses_what_each_band_is_multiplied_by():
    maps, mask = random(1, 4, 6, 6).float(), blob(12, 12)[None]

    def bands(*words):
        return FrequencyAwareMatching(40, weighting=words)(maps, mask, maps, mask)

    paper, swapped = bands("1-sim", "sim", "1-sim"), bands("sim", "1-sim", "sim")
    assert not torch.allclose(paper.middle, swapped.middle)
    dropped = bands("1-sim", "drop", "1-sim")
    assert not dropped.middle.any()
    torch.testing.assert_close(dropped.low, paper.low)


def test_an_empty_coarse_query_gives_a_finite_answer():
    net = FAMNet("small", channels=8, n_tokens=9)
    torch.nn.init.constant_(net.threshold.bias, -1e4)
    image, mask = random(2, 1, 32, 32).float(), torch.ones(2, 32, 32)
    pred, aux = net(image, mask, image)
    assert not bool((aux["coarse"][:, 1] > 0.5).any())
    famnet_loss(pred, aux["coarse"], mask).backward()
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    assert all(bool(torch.isfinite(g).all()) for g in (pred, *grads))


def test_half_precision_bands_are_computed_in_float32():
    x = random(3, 5, 5).bfloat16()
    low, middle, high = split_bands(x, 0.3)
    assert low.dtype == middle.dtype == high.dtype == torch.bfloat16
    torch.testing.assert_close(low, split_bands(x.float(), 0.3)[0].bfloat16())


@pytest.fixture(scope="module")
def coco_state():
    """Names and shapes of torchvision's deeplabv3_resnet50 file, without torchvision."""
    own = ResNet50Dilated(channels=8, seed=1).state_dict()
    kept = {k: v for k, v in own.items() if k.startswith("backbone.") and ".fc." not in k}
    return {**kept, "classifier.4.bias": torch.zeros(21)}


def test_a_coco_file_loads_by_name_and_says_what_it_lacks(coco_state):
    assert {"backbone.conv1.weight", "backbone.layer1.0.downsample.0.weight",
            "backbone.layer4.2.bn3.running_var"} <= set(coco_state)  # fmt: skip
    net = ResNet50Dilated(channels=8, seed=2)
    loaded = net.load_pretrained(coco_state)
    assert loaded.unused == ("classifier.4.bias",)
    assert {"backbone.fc.weight", "reduce1.weight", "reduce1d.weight"} <= set(loaded.missing)
    torch.testing.assert_close(
        net.backbone["layer4"][0].conv2.weight, coco_state["backbone.layer4.0.conv2.weight"]
    )


def test_a_plain_resnet_file_loads_too_and_a_foreign_one_is_refused(coco_state):
    net = ResNet50Dilated(channels=8)
    plain = {k.removeprefix("backbone."): v for k, v in coco_state.items()}
    assert len(net.load_pretrained(plain).taken) == len(coco_state) - 1
    with pytest.raises(ValueError, match="nothing was loaded"):
        net.load_pretrained({"model.stem.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"conv1.weight must have shape"):
        net.load_pretrained({"conv1.weight": torch.zeros(1)})


def test_a_deeper_resnet_or_a_part_of_one_is_refused(coco_state):
    net = ResNet50Dilated(channels=8)
    deeper = {**coco_state, "backbone.layer3.22.conv1.weight": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"such as backbone\.layer3\.22\.conv1\.weight"):
        net.load_pretrained(deeper)
    part = {"conv1.weight": coco_state["backbone.conv1.weight"]}
    with pytest.raises(ValueError, match="must hold a whole ResNet-50, got 1 of"):
        net.load_pretrained(part)
    parallel = {f"module.{k}": v for k, v in coco_state.items()}
    assert len(net.load_pretrained(parallel).taken) == len(coco_state) - 1


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_averages_of_large_masks_are_finite(autocast):
    features, mask = torch.full((1, 2, 32, 32), 3.0), torch.ones(1, 256, 256)
    if not autocast:
        features = features.half()
    with torch.autocast("cpu", torch.float16, enabled=autocast):
        made = masked_average(features, mask)
    assert made.dtype == features.dtype
    torch.testing.assert_close(made.float(), torch.full((1, 2), 3.0))


@pytest.mark.usefixtures("no_annotation_checks")
def test_the_loss_takes_no_fraction_for_a_class():
    even = torch.full((1, 2, 2, 2), 0.5)
    with pytest.raises(ValueError, match=r"query_mask must hold 0, 1 or 255, got \[0\."):
        famnet_loss(even, even, torch.full((1, 2, 2), 0.9))


def test_the_dilated_resnet_keeps_stride_four():
    features, threshold = ResNet50Dilated(channels=8).eval()(torch.zeros(1, 3, 64, 40))
    assert features.shape == (1, 8, 16, 10)
    assert threshold.shape == (1,)


def test_a_checkpoint_of_the_authors_names_loads_and_a_foreign_one_is_refused():
    def net(seed):
        return FAMNet(SmallEncoder(8, seed=seed), channels=8, n_tokens=20, seed=seed)

    source, target = net(1), net(2)
    state = {f"module.{k}": v for k, v in source.state_dict().items()}
    assert not target.load_published(state).missing
    for name, value in source.state_dict().items():
        torch.testing.assert_close(target.state_dict()[name], value)
    foreign = {k.replace(".query.", ".wq.").replace(".key.", ".wk."): v for k, v in state.items()}
    assert "MSFM.CA1.query.weight" in target.load_published(foreign).missing
    names = set(source.state_dict())
    assert {"FAM.attention_matching.fc_spt.0.weight", "MSFM.CA1.query.weight"} <= names
    without = {k: v for k, v in state.items() if ".FAM." not in k}
    with pytest.raises(ValueError, match=r"under FAM\.attention_matching\."):
        target.load_published(without)
    with pytest.raises(ValueError, match="must have shape"):
        FAMNet(SmallEncoder(8), channels=8, n_tokens=21).load_published(state)


def test_any_module_serves_as_encoder_with_or_without_a_threshold():
    class Pair(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(2, 8, 4, 4)

        def forward(self, x):
            return self.conv(x), x.mean(dim=(1, 2, 3)) - 10

    image, mask = random(2, 2, 16, 16).float(), torch.ones(2, 1, 16, 16)
    for encoder in (Pair(), torch.nn.Conv2d(2, 8, 4, 4)):
        pred, _ = FAMNet(encoder, channels=8, n_tokens=4)(image, mask, image)
        assert pred.shape == (2, 2, 16, 16)


def test_grey_images_are_repeated_for_a_colour_encoder():
    net = PrototypeSegmenter(SmallEncoder(8, in_channels=3), channels=8)
    grey = random(1, 1, 16, 16).float()
    features, _ = net.encode(grey)
    torch.testing.assert_close(features, net.encode(grey.repeat(1, 3, 1, 1))[0])


IMAGE = torch.zeros(2, 1, 16, 16)
ONES = torch.ones(2, 16, 16)


@pytest.mark.usefixtures("no_annotation_checks")
@pytest.mark.parametrize(
    ("images", "mask", "words"),
    [
        (torch.zeros(2, 2, 16, 16), ONES, "images must have 1 channel, as the encoder has, got 2"),
        (IMAGE, torch.ones(2, 8, 8), "support_mask must have the images' size"),
        (IMAGE, torch.zeros(2, 16, 16), "no foreground in image 0"),
        (IMAGE, torch.stack([ONES[0], 0 * ONES[0]]), "no foreground in image 1"),
        (IMAGE, 3 * ONES, "support_mask must hold 0 and 1"),
        (IMAGE[0], ONES, "support_img must have shape"),
    ],
)
def test_wrong_images_and_masks_get_one_sentence(images, mask, words):
    net = PrototypeSegmenter("small", channels=8)
    with pytest.raises(ValueError, match=words):
        net(images, mask, images)


@pytest.mark.usefixtures("no_annotation_checks")
def test_wrong_settings_get_one_sentence():
    for words, call in (
        ("the encoder must return features of shape", lambda: PrototypeSegmenter(
            SmallEncoder(16), channels=8)(IMAGE, ONES, IMAGE)),
        ("encoder must be a module or one of", lambda: FAMNet("resnet18")),
        ("layout must be one of", lambda: FrequencyAwareMatching(layout="plane")),
        ("cutoff must be in", lambda: FrequencyAwareMatching(cutoff=0.5)),
        ("weighting must be three of", lambda: FrequencyAwareMatching(weighting=("sim",) * 2)),
        ("n_tokens must be a whole number", lambda: FrequencyAwareMatching(4.5)),
        ("tokens must hold at least one", lambda: split_token_bands(torch.zeros(2, 0), 0.3)),
        ("images must be larger than 4 x 4", lambda: PrototypeSegmenter("small", 8)(
            IMAGE[..., :4, :4], ONES[:, :4, :4], IMAGE[..., :4, :4])),
        ("images must hold at least one image", lambda: PrototypeSegmenter("small", 8)(
            IMAGE[:0], ONES[:0], IMAGE[:0])),
        ("images must be torch.float32", lambda: PrototypeSegmenter("small", 8)(
            IMAGE.double(), ONES, IMAGE.double())),
        ("n_tokens must be at least 1", lambda: FrequencyAwareMatching(n_tokens=0)),
        ("fusion must be one of", lambda: FAMNet("small", 8, 4, fusion="max")),
        ("low must have 8 channels", lambda: MultiSpectralFusion(8)(*[torch.zeros(1, 4, 2)] * 3)),
        ("query_mask must hold", lambda: famnet_loss(*[torch.full((1, 2, 2, 2), 0.5)] * 2,
                                                     torch.full((1, 2, 2), 7))),
        ("pred must have shape", lambda: famnet_loss(*[torch.full((1, 2, 2, 2), 0.5)] * 2,
                                                     torch.ones(1, 3, 3))),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            call()
