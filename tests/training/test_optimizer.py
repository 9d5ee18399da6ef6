"""Which parameters move at which rate and with which decay; the courses of the learning rate."""

from __future__ import annotations

import pytest

from mask2former_dinov3.config.train_config import load_config
from mask2former_dinov3.training.optimizer import build_optimizer, build_scheduler, parameter_groups
from support.models import small_model


def test_parameter_groups__rates_and_decay() -> None:
    model = small_model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, 1e-3, 0.1, 0.05)
    found = {
        names[id(parameter)]: (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]
    }
    assert found.keys() == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert found["backbone.model.layer.0.attention.q_proj.weight"] == pytest.approx((1e-4, 0.05))
    assert found["backbone.embeddings.cls_token"] == pytest.approx((1e-4, 0.0))
    assert found["backbone.norm.weight"] == pytest.approx((1e-4, 0.0))
    assert found["head.pixel_decoder.level_embed"] == (1e-3, 0.0)
    assert found["head.transformer_decoder.queries_features.weight"] == (1e-3, 0.0)
    assert found["head.transformer_decoder.layers.0.fc1.weight"] == (1e-3, 0.05)
    assert found["head.transformer_decoder.layers.0.fc1.bias"] == (1e-3, 0.0)
    assert found["neck.projections.0.weight"] == (1e-3, 0.05)


def test_parameter_groups__a_frozen_backbone_is_in_none() -> None:
    model = small_model()
    model.freeze_backbone()
    assert len(parameter_groups(model, 1e-3, 0.1, 0.05)) == 2


def test_build_scheduler__cuts_a_warm_up_longer_than_the_run(caplog: pytest.LogCaptureFixture) -> None:
    options = {"dataset_name": "x", "output_dir": "y", "num_warmup_steps": 100}
    config, _ = load_config(None, options)
    optimizer = build_optimizer(small_model(), config)
    scheduler = build_scheduler(optimizer, config, 40)
    assert "100 is not below the 40 steps of the run; using 4" in caplog.text
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    assert scheduler.get_last_lr()[0] == pytest.approx(config.learning_rate)


@pytest.mark.parametrize(
    "name", ["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"]
)
def test_build_scheduler__warms_up_and_keeps_the_ratio(name: str) -> None:
    config, _ = load_config(
        None,
        {
            "dataset_name": "x",
            "output_dir": "y",
            "lr_scheduler_type": name,
            "num_warmup_steps": 4,
            "max_train_steps": 9,
        },
    )
    optimizer = build_optimizer(small_model(), config)
    scheduler = build_scheduler(optimizer, config, 10)
    rates = []
    for _ in range(10):
        rates.append(scheduler.get_last_lr())
        optimizer.step()
        scheduler.step()
    assert max(rate[0] for rate in rates) == pytest.approx(config.learning_rate)
    if name != "constant":
        assert rates[0][0] == 0
        assert rates[2][0] == pytest.approx(config.learning_rate / 2)
    assert all(rate[-1] == pytest.approx(rate[0] * 0.1) for rate in rates)
