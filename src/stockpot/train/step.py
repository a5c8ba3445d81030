"""One optimiser step: move, augment, mix, forward, backward, clip, update."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch

from stockpot.evaluate.batchnorm import training_transform
from stockpot.evaluate.runner import is_out_of_memory, to_device
from stockpot.tensors._devices_torch import release_memory
from stockpot.train import augment
from stockpot.train.losses import distilled_loss, sigmoid_loss, smoothed_loss
from stockpot.train.run import Run


def take(batch: Any, rows: slice) -> Any:
    """The examples `rows` of `batch`."""
    if isinstance(batch, torch.Tensor):
        return batch[rows]
    if isinstance(batch, Mapping):
        return {name: take(value, rows) for name, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        return tuple(take(value, rows) for value in batch)
    return batch


def train_step(run: Run, batch: Any, lr: float) -> None:
    """Change the run's model by one step on `batch`.

    When the device's memory runs out, the batch is computed in parts whose gradients add up to the
    same step (BatchNorm sees smaller parts, though), and so are all batches after it.
    """
    for group in run.optimizer.param_groups:
        group["lr"] = lr
    batch, mix = _augmented(run, to_device(batch, run.accelerator.device))
    if run.pruner is not None:
        run.pruner.before_step(run.position, run.optimizer)
    while True:
        try:
            with nullcontext() if run.pruner is None else run.pruner.sparse():
                loss = _gradients(run, batch, mix)
            break
        except RuntimeError as error:
            if not is_out_of_memory(error) or run.micro_batches * 2 > run.batch_size:
                raise
            run.optimizer.zero_grad(set_to_none=True)
            release_memory(run.accelerator.device)
            run.micro_batches *= 2
    _update(run)
    # Summed on the device: reading it each step would make the CPU wait for the accelerator.
    run.loss_sum = loss if run.loss_sum is None else run.loss_sum + loss


def _update(run: Run) -> None:
    """Clip and step; with float16 through the scaler, which leaves out steps that overflowed."""
    scaler = run.accelerator.scaler
    if scaler is not None:
        scaler.unscale_(run.optimizer)
    _pull_to_start(run)
    if run.pruner is not None:
        run.pruner.mask_gradients()
    if run.config.clip_norm is not None:
        torch.nn.utils.clip_grad_norm_(run.raw_model.parameters(), run.config.clip_norm)
    if scaler is None:
        run.optimizer.step()
    else:
        scaler.step(run.optimizer)
        scaler.update()
    run.optimizer.zero_grad(set_to_none=True)


def _pull_to_start(run: Run) -> None:
    """Add λ(θ − θ₀), the gradient of λ/2·‖θ − θ₀‖², to the gradients of the loss.

    Reference: Li et al. 2018, arXiv 1802.01483.
    """
    strength = run.config.pull_to_start
    if strength == 0:
        return
    assert run.start is not None
    with torch.no_grad():
        pairs = zip(run.raw_model.parameters(), run.start.parameters(), strict=True)
        for parameter, start in pairs:
            if parameter.grad is not None:
                parameter.grad.add_(parameter - start, alpha=strength)


def _backward(run: Run, loss: torch.Tensor) -> None:
    # Accelerator.backward searches for installed packages at every step, which takes longer than
    # the small networks' own steps allow.
    scaler = run.accelerator.scaler
    (loss if scaler is None else scaler.scale(loss)).backward()


def _augmented(run: Run, batch: Any) -> tuple[Any, augment.Mix | None]:
    config, generator = run.config, run.generator
    own = training_transform(run.task)
    if own is not None:
        batch = own(batch, generator)
    if augment.changes_images(config):
        batch = augment.ImageTransform(config)(batch, generator)
    if config.mixup == 0 and config.cutmix == 0:
        return batch, None
    n = len(run.task.targets(batch))
    mixes: list[augment.Mix] = []

    def mix(inputs: torch.Tensor) -> torch.Tensor:
        if not mixes:
            mixes.append(augment.draw_mix(config, n, tuple(inputs.shape[2:]), generator))
        return augment.mix_inputs(inputs, mixes[0])

    batch = augment.map_inputs(batch, mix)
    return batch, mixes[0]


def _gradients(run: Run, batch: Any, mix: augment.Mix | None) -> torch.Tensor:
    """Gradients of the mean loss, and that loss, detached."""
    targets = run.task.targets(batch)
    partners = None if mix is None else targets[mix.partner.to(targets.device)]
    if run.micro_batches == 1:
        loss = _loss(run, batch, targets, partners, mix)
        _backward(run, loss)
        return loss.detach()
    n = len(targets)
    size = -(-n // run.micro_batches)
    total = torch.zeros((), device=targets.device)
    for first in range(0, n, size):
        rows = slice(first, first + size)
        own = targets[rows]
        other = None if partners is None else partners[rows]
        loss = _loss(run, take(batch, rows), own, other, mix) * (len(own) / n)
        _backward(run, loss)
        total = total + loss.detach()
    return total


def _loss(
    run: Run,
    batch: Any,
    targets: torch.Tensor,
    partners: torch.Tensor | None,
    mix: augment.Mix | None,
) -> torch.Tensor:
    mixed = run.config.precision != "fp32"
    with run.accelerator.autocast() if mixed else nullcontext():
        outputs = _in_float32(run.task.predict(run.model, batch))
    loss = _loss_to(run, outputs, targets)
    if mix is not None and partners is not None:
        loss = mix.share * loss + (1 - mix.share) * _loss_to(run, outputs, partners)
    if run.config.loss == "task":  # once for both targets; the sigmoid loss smooths its own
        loss = smoothed_loss(loss, outputs, run.config.label_smoothing)
    share = run.config.distill_from_start
    if share == 0:
        return loss
    assert run.start is not None
    with torch.no_grad(), run.accelerator.autocast() if mixed else nullcontext():
        taught = _in_float32(run.task.predict(run.start, batch))
    return distilled_loss(loss, outputs, taught, share)


def _loss_to(run: Run, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    if run.config.loss == "sigmoid":
        return sigmoid_loss(outputs, targets, run.config.label_smoothing)
    return run.task.loss(outputs, targets)


def _in_float32(outputs: torch.Tensor) -> torch.Tensor:
    return outputs.float() if outputs.dtype in (torch.float16, torch.bfloat16) else outputs
