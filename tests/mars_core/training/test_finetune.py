from __future__ import annotations

import copy
import functools
import json
import math
import pickle
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch.utils.data import SequentialSampler
from transformers import TrainingArguments

from mars_core.data.collate import collate
from mars_core.evaluation.answer_loss import token_losses
from mars_core.evaluation.scores import evaluate
from mars_core.models.lora import adapter_state, add_adapters
from mars_core.models.targets import Patterns, adapting
from mars_core.packing.adapters import layout_of, to_peft
from mars_core.packing.run import PackRun
from mars_core.packing.train import train_pack
from mars_core.ranks import AlphaRules, RankPair
from mars_core.rates import LearningRates
from mars_core.training.checkpoints import CHECKSUMS, last_checkpoint, write_checksums
from mars_core.training.finetune import FinetuneDiverged, all_logits
from mars_core.training.methods import Lora
from mars_core.training.recipe import Recipe
from mars_core.training.trainer import ELAPSED, AnswerTrainer
from tests.mars_core.training.final_runs import run_of

PAIR = RankPair(2, 4)
RECIPE = Recipe(learning_rate=3e-3, batch_size=2, warmup_ratio=0.25, max_grad_norm=0.5, dtype="float64")


class Interrupted(Exception):  # noqa: N818
    """Stands for a killed process."""


@pytest.fixture
def adapted(base):
    """Makes a fresh model of its own with adapters, always the same ones."""
    return lambda: add_adapters(copy.deepcopy(base.model), base.partition, PAIR, seed=3)


@pytest.fixture(scope="session")
def validation(encoded, batch_of):
    """Gives one scored batch of three samples."""
    rows = (0, 3, 6)
    return lambda: [(batch_of(*rows), [encoded[row].sample.task for row in rows])]


@pytest.fixture(scope="session")
def arguments(encoded, validation, shared_base):
    """What `finetune` is given, but for the folder of its checkpoints."""
    return {
        "train": encoded,
        "collate": functools.partial(collate, pad_token_id=shared_base.pad_token_id),
        "validation": validation,
        "recipe": RECIPE,
        "steps": 8,
        "seed": 3,
    }


@pytest.fixture
def tune(arguments, tmp_path):
    """Runs `finetune` on the samples."""
    return lambda wrapped, *, folder="checkpoints", **changes: run_of(
        wrapped, arguments | {"checkpoints": tmp_path / folder} | changes
    )


@pytest.fixture(scope="session")
def whole(arguments, shared_base, tmp_path_factory):
    """An undisturbed run and the adapters that it ended with, made once; to be left as they are."""
    wrapped = add_adapters(copy.deepcopy(shared_base.model), shared_base.partition, PAIR, seed=3)
    checkpoints = tmp_path_factory.mktemp("whole")
    run = run_of(wrapped, arguments | {"checkpoints": checkpoints})
    return SimpleNamespace(run=run, state=adapter_state(wrapped), checkpoints=checkpoints)


def validation_losses(run) -> dict[int, float]:
    return {entry["step"]: entry["eval_loss"] for entry in run.history if "eval_loss" in entry}


def test_the_trainer_gives_the_loss_curve_of_a_calibration_run(tune, adapted, base, batch_of, validation, monkeypatch):
    """The same recipe, pair, seed and batches: two epochs in the dataset's order."""
    monkeypatch.setattr(
        AnswerTrainer, "_get_train_sampler", lambda self, dataset=None: SequentialSampler(self.train_dataset)
    )
    order = [batch_of(start, start + 1) for _ in range(2) for start in range(0, 8, 2)]
    steps = tuple(range(1, 9))
    pack = train_pack(
        base.model,
        base.partition,
        [PackRun(PAIR, 3)],
        train_steps=lambda done: [[batch] for batch in order[done:]],
        validation=validation,
        recipe=RECIPE,
        horizon=8,
        checkpoint_steps=steps,
    )
    reference, kept = pack.runs[0], to_peft(pack.weights[0], layout_of(base.partition, PAIR))
    wrapped = adapted()
    last = {}
    run = tune(wrapped, on_step=lambda step: last.update(adapter_state(wrapped)) if step == 8 else None)
    logged = [entry for entry in run.history if "loss" in entry]
    assert [entry["step"] for entry in logged] == list(steps)
    for entry, checkpoint in zip(logged, reference.checkpoints, strict=True):
        # The Trainer collects its losses and norms in fp32; its log shows them as they are.
        assert entry["loss"] == pytest.approx(checkpoint.train_loss, rel=1e-5)
        norm = math.hypot(checkpoint.grad_norm_me, checkpoint.grad_norm_llm)
        assert entry["grad_norm"] == pytest.approx(norm, rel=1e-4)
    for step, loss in validation_losses(run).items():
        assert loss == pytest.approx(reference.checkpoints[step - 1].val_loss, rel=1e-7)
    for name, weight in last.items():
        # AdamW without decay and Adam do the same in another order; small gradients enlarge the difference.
        torch.testing.assert_close(weight, kept[name], rtol=1e-5, atol=1e-7)


def test_any_recipe_is_trained_as_a_pack_trains_it(tune, base, batch_of, validation, monkeypatch):
    """Layers, ranks, scales, rates of modules and of B, AdamW and schedule; tolerances as above."""
    monkeypatch.setattr(
        AnswerTrainer, "_get_train_sampler", lambda self, dataset=None: SequentialSampler(self.train_dataset)
    )
    recipe = replace(
        RECIPE,
        targets=Patterns(me="fc1", llm="self_attn|down_proj"),
        projector_rank=3,
        module_lora_alpha=AlphaRules(6.0, "sqrt", "2r"),
        module_learning_rates=LearningRates(2e-3, 1e-3, 3e-3),
        lora_plus_ratio=4.0,
        optimizer="adamw",
        weight_decay=0.2,
        beta1=0.8,
        beta2=0.95,
        schedule="warmup_stable_decay",
        decay_ratio=0.5,
        final_share=0.1,
    )
    partition = adapting(base.partition, recipe.targets, recipe.projector_rank)
    order = [batch_of(start, start + 1) for start in range(0, 8, 2)]
    pack = train_pack(
        base.model,
        partition,
        [PackRun(PAIR, 3)],
        train_steps=lambda done: [[batch] for batch in order[done:]],
        validation=validation,
        recipe=recipe,
        horizon=4,
        checkpoint_steps=(1, 2, 3, 4),
    )
    reference, kept = pack.runs[0], to_peft(pack.weights[0], layout_of(partition, PAIR))
    method = Lora(PAIR)
    wrapped = method.wrap(copy.deepcopy(base.model), partition, seed=3, recipe=recipe, steps=4)
    last = {}
    run = tune(
        wrapped,
        steps=4,
        recipe=recipe,
        method=method,
        partition=partition,
        on_step=lambda step: last.update(adapter_state(wrapped)) if step == 4 else None,
    )
    logged = [entry for entry in run.history if "loss" in entry]
    for entry, checkpoint in zip(logged, reference.checkpoints, strict=True):
        assert entry["loss"] == pytest.approx(checkpoint.train_loss, rel=1e-5)
        assert entry["learning_rate_llm_B"] == pytest.approx(4 * entry["learning_rate_llm"])
    for step, loss in validation_losses(run).items():
        assert loss == pytest.approx(reference.checkpoints[step - 1].val_loss, rel=1e-7)
    assert last.keys() == kept.keys()
    for name, weight in last.items():
        torch.testing.assert_close(weight, kept[name], rtol=1e-5, atol=1e-7)


def test_several_rates_need_to_know_whose_they_are(tune, adapted):
    with pytest.raises(ValueError, match="needs the method and the partition"):
        tune(adapted(), recipe=replace(RECIPE, lora_plus_ratio=2.0))


def test_accumulated_micro_batches_give_the_same_curve(tune, adapted, whole):
    """The loss is the mean over the answer tokens of the whole step, so only sums are made in another order."""
    parts = tune(adapted(), micro_batch_size=1)
    assert validation_losses(parts) == pytest.approx(validation_losses(whole.run), rel=1e-7)


def test_micro_batches_that_do_not_make_up_the_batch_are_refused(tune, adapted):
    with pytest.raises(ValueError, match="micro_batch_size 3 does not divide the batch of 2"):
        tune(adapted(), micro_batch_size=3)


def test_a_resumed_run_counts_the_seconds_before_the_interruption(tune, adapted, tmp_path):
    def slow(step):
        if step == 1:
            time.sleep(0.5)
        if step == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        tune(adapted(), steps=4, on_step=slow)
    elapsed = tmp_path / "checkpoints" / "checkpoint-2" / ELAPSED
    assert json.loads(elapsed.read_text())["seconds"] > 0.5
    elapsed.write_text(json.dumps({"seconds": 1000.0}))  # far more than the rest takes on any machine
    write_checksums(elapsed.parent)
    started = time.perf_counter()
    again = tune(adapted(), steps=4)
    rest = time.perf_counter() - started
    assert 1000 < again.seconds < 1000 + rest
    assert again.samples_per_second > 2 * RECIPE.batch_size / rest  # the speed is that of the two steps made here
    done = json.loads((tmp_path / "checkpoints" / "checkpoint-4" / ELAPSED).read_text())["seconds"]
    assert 1000 < done < 1000 + rest


def test_a_checkpoint_without_a_time_is_resumed_from(tune, adapted, tmp_path):
    """Those of earlier versions have none."""
    done = tune(adapted(), steps=2)
    for name in (ELAPSED, CHECKSUMS):
        (tmp_path / "checkpoints" / "checkpoint-2" / name).unlink()
    assert tune(adapted(), steps=2).best_step == done.best_step


def test_a_half_written_checkpoint_is_passed_over(tune, adapted, whole, tmp_path):
    """The run then ends where an undisturbed one does, as it does without one: see test_methods.py."""

    def interrupt(step):
        if step == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        tune(adapted(), folder="cut", on_step=interrupt)
    half = shutil.copytree(tmp_path / "cut" / "checkpoint-4", tmp_path / "cut" / "checkpoint-5")
    (half / "trainer_state.json").unlink()
    (half / "optimizer.pt").write_bytes(b"half")
    steps, resumed = [], adapted()
    again = tune(resumed, folder="cut", on_step=steps.append)
    assert steps == [5, 6, 7, 8]
    assert validation_losses(again) == validation_losses(whole.run)
    assert (again.steps, again.best_step, again.best_val_loss) == (8, whole.run.best_step, whole.run.best_val_loss)
    assert all(torch.equal(weight, whole.state[name]) for name, weight in adapter_state(resumed).items())


class Attack:
    """What runs a command where it is unpickled freely."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (Path(self.mark),)


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_nothing_in_a_checkpoint_can_run_code(tune, adapted, tmp_path, name):
    """Even where whoever planted it recorded its hash too: PyTorch makes tensors and plain values of it, or refuses."""

    def interrupt(step):
        if step == 3:
            raise Interrupted

    with pytest.raises(Interrupted):
        tune(adapted(), steps=4, on_step=interrupt)
    checkpoint, mark = tmp_path / "checkpoints" / "checkpoint-2", tmp_path / "was-run"
    torch.save({"state": Attack(mark)}, checkpoint / name)
    torch.load(checkpoint / name, weights_only=False)
    assert mark.exists()  # it is a real attack
    mark.unlink()
    write_checksums(checkpoint)
    with pytest.raises((pickle.UnpicklingError, RuntimeError)):
        tune(adapted(), steps=4)
    assert not mark.exists()


def test_a_cut_checkpoint_falls_back_to_the_older_whole_one(tune, adapted, whole, tmp_path):
    def interrupt(step):
        if step == 5:
            raise Interrupted

    with pytest.raises(Interrupted):
        tune(adapted(), folder="cut", on_step=interrupt)
    newest = max((tmp_path / "cut").glob("checkpoint-*"), key=lambda folder: int(folder.name.rpartition("-")[2]))
    weights = newest / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    steps, resumed = [], adapted()
    again = tune(resumed, folder="cut", on_step=steps.append)
    assert steps[0] < 5
    assert validation_losses(again) == validation_losses(whole.run)
    assert all(torch.equal(weight, whole.state[name]) for name, weight in adapter_state(resumed).items())


FILES = ["adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("left", [0, 0.5], ids=["empty", "cut"])
def test_every_file_of_a_checkpoint_is_looked_at(whole, tmp_path, file, left):
    folder = shutil.copytree(whole.checkpoints, tmp_path / "checkpoints")
    newest = last_checkpoint(folder)
    older = shutil.copytree(newest, folder / "checkpoint-1")
    state = json.loads((older / "trainer_state.json").read_text()) | {"best_model_checkpoint": None}
    (older / "trainer_state.json").write_text(json.dumps(state))
    write_checksums(older)
    for other in folder.glob("checkpoint-*"):
        if other not in (newest, older):
            shutil.rmtree(other)
    data = (newest / file).read_bytes()
    (newest / file).write_bytes(data[: int(len(data) * left)])
    assert last_checkpoint(folder) == older


def test_a_finished_run_is_not_trained_again(tune, adapted, whole):
    second, steps = adapted(), []
    again = tune(second, checkpoints=whole.checkpoints, on_step=steps.append)
    assert steps == []
    assert (again.best_step, again.best_val_loss) == (whole.run.best_step, whole.run.best_val_loss)
    assert all(torch.equal(weight, whole.state[name]) for name, weight in adapter_state(second).items())


def test_checkpoints_of_a_run_of_another_length_are_refused(tune, adapted):
    """Its learning rates would be those of another schedule."""
    tune(adapted(), steps=2)
    with pytest.raises(ValueError, match="belong to a run of 2 steps, this one has 3: remove them"):
        tune(adapted(), steps=3)


def test_the_model_ends_with_the_best_checkpoints_weights(tune, adapted, validation, random_adapters, tmp_path):
    """The last steps spoil the weights, so that the best checkpoint is not the last."""
    wrapped, states = adapted(), {}

    def spoil_and_note(step):
        if step > 5:
            random_adapters(wrapped, 10.0)
        states[step] = adapter_state(wrapped)

    run = tune(wrapped, on_step=spoil_and_note)
    losses = validation_losses(run)
    assert run.best_step == min(losses, key=losses.get)
    assert run.best_step < run.steps == 8
    assert run.best_val_loss == losses[run.best_step]
    held = adapter_state(wrapped)
    assert all(torch.equal(weight, states[run.best_step][name]) for name, weight in held.items())
    assert evaluate(wrapped, validation()).overall.loss == pytest.approx(run.best_val_loss, rel=1e-12)
    saved = load_file(tmp_path / "checkpoints" / f"checkpoint-{run.best_step}" / "adapter_model.safetensors")
    assert {name.replace(".weight", ".default.weight") for name in saved} == set(held)


def test_a_checkpoint_is_a_peft_adapter(tune, adapted, base, batch_of, tmp_path):
    wrapped = adapted()
    run = tune(wrapped, steps=2)
    fresh = PeftModel.from_pretrained(
        copy.deepcopy(base.model), tmp_path / "checkpoints" / f"checkpoint-{run.best_step}"
    )
    batch = batch_of(0, 1, 2)
    # fp64; kernels may sum in another order over weights that lie elsewhere in memory.
    torch.testing.assert_close(all_logits(fresh, batch), all_logits(wrapped, batch), rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 5, 11])
def test_the_last_step_is_always_evaluated(tune, adapted, steps):
    run = tune(adapted(), steps=steps)
    evaluated = validation_losses(run)
    assert max(evaluated) == run.steps == steps
    assert len(evaluated) <= 11


def test_accumulated_batches_weigh_every_answer_token_alike(adapted, base, encoded, batch_of, validation, tmp_path):
    """Two batches of two with unequal answers do what one batch of four does."""

    def gradients(batch_size: int, accumulate: int):
        wrapped = adapted()
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulate,
            max_steps=1,
            learning_rate=0.0,
            max_grad_norm=0.0,
            remove_unused_columns=False,
            label_names=["labels"],
            report_to=[],
            disable_tqdm=True,
            save_strategy="no",
            logging_steps=1,
            use_cpu=True,
        )
        found = {}
        trainer = AnswerTrainer(
            model=wrapped,
            args=arguments,
            train_dataset=encoded[1:5],
            data_collator=functools.partial(collate, pad_token_id=base.pad_token_id),
            validation=validation,
            recipe=RECIPE,
        )
        parameters = {name: p for name, p in wrapped.named_parameters() if p.requires_grad}
        for name, parameter in parameters.items():
            parameter.register_hook(lambda grad, name=name: found.update({name: found.get(name, 0) + grad}))
        trainer.train()
        return found, trainer.state.log_history[0]["loss"]

    wrapped = adapted().train()
    loss = token_losses(wrapped, batch_of(1, 2, 3, 4)).mean()
    loss.backward()
    expected = {name: p.grad for name, p in wrapped.named_parameters() if p.requires_grad}
    for batch_size, accumulate in ((4, 1), (2, 2), (1, 4)):
        found, logged = gradients(batch_size, accumulate)
        assert logged == pytest.approx(loss.item(), rel=1e-5)  # collected in fp32
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-8, atol=1e-12)


def test_a_run_that_diverges_says_so(tune, adapted):
    wrapped = adapted()

    def break_weights(step):
        if step == 3:
            next(p for p in wrapped.parameters() if p.requires_grad).data.fill_(torch.nan)

    with pytest.raises(FinetuneDiverged, match=r"diverged by step 3 \(validation loss nan\): lower recipe"):
        tune(wrapped, on_step=break_weights)


def test_a_learning_rate_that_diverges_says_so(tune, adapted):
    recipe = Recipe(learning_rate=1e30, batch_size=2, warmup_ratio=0.0, max_grad_norm=0.0, dtype="float64")
    with pytest.raises(FinetuneDiverged, match="diverged by step"):
        tune(adapted(), recipe=recipe)


def test_nothing_is_printed(tune, adapted, capsys):
    tune(adapted(), steps=2)
    assert capsys.readouterr().out == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_model_on_the_cpu_is_trained_there_though_there_is_a_gpu(tune, adapted):
    wrapped = adapted()
    tune(wrapped, steps=2)
    assert {parameter.device.type for parameter in wrapped.parameters()} == {"cpu"}


def test_gradient_checkpointing_changes_memory_and_nothing_else(tune, adapted):
    """A forward pass that is computed twice in double precision gives the same losses to the last bit."""
    calls = []
    plain, checkpointed = adapted(), adapted()
    block = next(m for name, m in checkpointed.named_modules() if name.endswith("language_model.layers.0.mlp"))
    block.register_forward_pre_hook(lambda module, _: calls.append(module.training))
    without = tune(plain, folder="plain", steps=2)
    with_it = tune(checkpointed, folder="checkpointed", steps=2, gradient_checkpointing=True)
    assert validation_losses(with_it) == validation_losses(without)
    weights = adapter_state(plain)
    assert all(torch.equal(weight, weights[name]) for name, weight in adapter_state(checkpointed).items())
    assert calls.count(True) == 2 * 2  # forward and again in the backward pass, two steps
    assert not any(getattr(module, "gradient_checkpointing", False) for module in checkpointed.modules())
