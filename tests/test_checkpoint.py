"""Checkpoints: what is kept, what is damaged, what is interrupted."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmeta import TrainState, checkpoint


def train_state(step):
    params = {"w": jnp.arange(3000.0) + step, "b": jnp.float32(step)}
    return TrainState(jnp.int32(step), params, {}, optax.adam(1e-3).init(params), ())


@pytest.fixture
def saved(tmp_path):
    for step, score in ((10, 0.5), (20, 0.9), (30, 0.6), (40, 0.7)):
        checkpoint.save(tmp_path, train_state(step), score=score, meta={"config": {"seed": 3}})
    return tmp_path


def test_two_latest_and_the_best_are_kept(saved):
    assert checkpoint.checkpoint_steps(saved) == [20, 30, 40]


@pytest.mark.parametrize(("best", "step"), [(False, 40), (True, 20)])
def test_round_trip(saved, best, step):
    restored = checkpoint.restore(saved, jax.eval_shape(lambda: train_state(0)), best=best)
    assert (restored.step, restored.meta, restored.damaged) == (step, {"config": {"seed": 3}}, ())
    for one, other in zip(jax.tree.leaves(restored.train_state), jax.tree.leaves(train_state(step)), strict=True):
        np.testing.assert_array_equal(one, other)
    assert isinstance(restored.train_state, TrainState)


def flip_a_byte(step_folder):
    largest = max((path for path in step_folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)


def cut_files(step_folder):
    for path in (step_folder / "state").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip_a_byte, cut_files, lambda step: shutil.rmtree(step / "state")])
def test_damaged_checkpoint_falls_back_and_says_so(saved, damage):
    damage(saved / "40")
    restored = checkpoint.restore(saved, train_state(0))
    assert (restored.step, restored.damaged) == (30, (40,))


def test_a_changed_value_is_noticed_even_where_the_storage_does_not(saved, monkeypatch):
    read = checkpoint.ocp.CheckpointManager.restore

    def spoilt(self, step, **options):
        items = read(self, step, **options)
        if step == 40:
            state = items["state"]
            params = {**state.meta_params, "w": state.meta_params["w"].at[7].add(1.0)}
            items["state"] = state._replace(meta_params=params)
        return items

    monkeypatch.setattr(checkpoint.ocp.CheckpointManager, "restore", spoilt)
    assert checkpoint.restore(saved, train_state(0)).step == 30


def test_all_damaged_is_an_error_that_names_them(saved):
    for step in checkpoint.checkpoint_steps(saved):
        cut_files(saved / str(step))
    with pytest.raises(checkpoint.CheckpointError, match=r"\[20, 30, 40\] are damaged"):
        checkpoint.restore(saved, train_state(0))


def test_none_is_an_error(tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="There is no checkpoint"):
        checkpoint.restore(tmp_path / "nowhere", train_state(0))


def test_leftovers_of_a_killed_save_are_no_checkpoint(saved):
    shutil.copytree(saved / "40", saved / "50.orbax-checkpoint-tmp")
    assert checkpoint.restore(saved, train_state(0)).step == 40
    checkpoint.save(saved, train_state(60), score=0.1, meta={})
    assert checkpoint.checkpoint_steps(saved) == [20, 40, 60]


def test_a_save_that_fails_leaves_the_others(saved, monkeypatch):
    def full(*args, **options):
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

    monkeypatch.setattr(checkpoint.ocp.CheckpointManager, "save", full)
    with pytest.raises(checkpoint.CheckpointError, match="step 50 could not be written.*No space left.*--resume"):
        checkpoint.save(saved, train_state(50), score=1.0, meta={})
    assert checkpoint.restore(saved, train_state(0)).step == 40
