"""What the papers claim, and which published data show something of it: one entry for each."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from experiments.claim_findings import (
    Claim,
    Finding,
    above_the_line,
    angle_and_gain,
    below_in_loss,
    between,
    between_demos,
    by_length,
    by_t5,
    by_training,
    by_varied,
    by_zoo,
    calibrated,
    half_way,
    less,
    members,
    on_the_line,
    safer,
    sparse,
)

from experiments import base_size, clip_soups, questions, sparse_lengths

SOUPS, WISE, SMS = "Model soups", "WiSE-FT", "Sparse model soups"
BEST, SHIFTS = "best single", "shift_average"
HAND = "handwriting, moderate rates, 20 sweeps of 12"
DEMO = "handwriting, moderate rates, 20 sweeps of 12"
RESNET = "ResNet-20, wide rates, 3 sweeps of 12"
CLIP = "a small CLIP on handwriting, moderate rates, 5 sweeps of 8"
PACS = "EfficientNet-Lite0 on PACS, moderate rates, 5 sweeps of 6"
PACS_THREE = "EfficientNet-Lite0 on three domains of PACS, moderate rates, 3 sweeps of 6"
SST2 = "MiniLM on SST-2, moderate rates, 5 sweeps of 6"
T5 = "a small T5 on SST-2, 3 sweeps of 4"
QUESTIONS, BASES = "questions-handwriting", "base_size-handwriting"
LENGTHS = "sparse_lengths-handwriting"


def _everywhere(model: str, other: str, split: str) -> tuple[Finding, ...]:
    """The same difference in both tables of every recipe."""
    values = between(model, other, split)
    return Finding(HAND, "every-handwriting", values), Finding(RESNET, "every-resnet", values)


def _elsewhere(model: str, other: str, split: str) -> tuple[Finding, ...]:
    """The same difference for a pretrained convolutional network, and for a small CLIP."""
    values = between(model, other, split)
    of_pacs = Finding(PACS, "every-pacs", values), Finding(PACS_THREE, "every-pacs-three", values)
    return *of_pacs, _of_clip(model, other, split)


def _of_clip(model: str, other: str, column: str) -> Finding:
    values = functools.partial(clip_soups.gains, model=model, other=other, column=column)
    return Finding(CLIP, "clip_soups-handwriting", values)


def _in_demos(model: str, other: str, split: str) -> tuple[Finding, ...]:
    """The same difference in the demo over twenty seeds, for ResNet-20, and elsewhere."""
    names = {BEST: "best-single"}
    demo = between_demos(names.get(model, model), names.get(other, other), split)
    return (
        Finding(DEMO, "handwriting-twenty", demo),
        Finding(RESNET, "every-resnet", between(model, other, split)),
        *_elsewhere(model, other, split),
    )


def _at_phases(model: str, other: str, *phases: str) -> tuple[Finding, ...]:
    return tuple(
        Finding(
            f"ResNet-20 at {100 * float(phase):.1f} %, 3 seeds",
            "sparse-resnet",
            sparse(model, other, phase),
        )
        for phase in phases
    )


def _by_length(
    model: str, other: str, sparsity: float, lengths: Sequence[int], *, column: str = "test"
) -> tuple[Finding, ...]:
    where = "" if column == "test" else ", mean of shifts"
    return tuple(
        Finding(
            f"handwriting at {100 * sparsity:g} %, epochs in each phase: {epochs}{where}, 5 seeds",
            LENGTHS,
            by_length(model, other, epochs, sparsity, column=column),
        )
        for epochs in lengths
    )


_PHASES = ("0.728558", "0.926319", "0.98")

CLAIMS = (
    Claim(
        "greedy",
        SOUPS,
        "A greedy soup is more accurate than the best single run.",
        "+0.65 (CLIP ViT-B/32, 72 runs), +0.22 (ViT-G/14, 58 runs)",
        _in_demos("greedy", BEST, "test"),
    ),
    Claim(
        "greedy-shifts",
        SOUPS,
        "On shifted data a greedy soup gains more.",
        "+2.92; +0.64",
        _in_demos("greedy", BEST, SHIFTS),
    ),
    Claim(
        "uniform-loses",
        SOUPS,
        "The uniform soup of a wide sweep loses to the best single run.",
        "−0.41",
        (Finding(RESNET, "every-resnet", between(BEST, "uniform", "test")),),
    ),
    Claim(
        "uniform-shifts",
        SOUPS,
        "On shifted data even the uniform soup gains.",
        "+3.62",
        _in_demos("uniform", BEST, SHIFTS),
    ),
    Claim(
        "learned",
        SOUPS,
        "Coefficients that are learned by layer beat the greedy soup.",
        "+0.34",
        _everywhere("learned by layer", "greedy", "test"),
    ),
    Claim(
        "ensemble",
        SOUPS,
        "A greedy ensemble is more accurate than the greedy soup.",
        "+0.87; −0.01",
        _everywhere("greedy ensemble", "greedy", "test")
        + _elsewhere("greedy ensemble", "greedy", "test"),
    ),
    Claim(
        "soup-over-ensemble",
        SOUPS,
        "On shifted data the greedy soup is more accurate than the greedy ensemble.",
        "+1.31; +0.69",
        _everywhere("greedy", "greedy ensemble", SHIFTS)
        + _elsewhere("greedy", "greedy ensemble", SHIFTS),
    ),
    Claim(
        "text",
        SOUPS,
        "Greedy soups gain on GLUE as well.",
        "BERT-base 0.0 to +0.7, T5-base +0.1 to +1.4",
        (
            *(
                Finding(
                    f"{SST2}, {model}, {title}",
                    "soups-sst2-moderate",
                    between(model, BEST, split),
                )
                for model in ("greedy", "uniform")
                for split, title in (("test", "test"), (SHIFTS, "product reviews"))
            ),
            Finding(
                "MiniLM on CoLA (Matthews), 3 sweeps of 8, in which little was learnt",
                "soups-cola",
                between("greedy", BEST, "test"),
            ),
        ),
    ),
    Claim(
        "angle",
        SOUPS,
        "The wider the angle between two runs, the more their mean gains.",
        "",
        tuple(
            Finding(
                f"handwriting, {what} varied, 5 seeds",
                "angles-handwriting",
                angle_and_gain(what),
                "r",
            )
            for what in ("learning rate", "augmentation", "seed")
        ),
    ),
    Claim(
        "calibration",
        SOUPS,
        "Ensembles are better calibrated than single runs, soups are not.",
        "",
        tuple(
            Finding(
                f"handwriting, ECE of {worse} less that of {better}, 20 sweeps",
                QUESTIONS,
                calibrated("turned by 0", better, worse),
            )
            for better, worse in (("ensemble", BEST), (BEST, "greedy"))
        ),
    ),
    Claim(
        "basin",
        SOUPS,
        "Networks of different initialisations do not average.",
        "",
        (
            Finding(
                "EfficientNet-Lite0 on PACS from scratch, best single less uniform, 3 sweeps of 3",
                "soups-pacs-scratch",
                between(BEST, "uniform", "test"),
            ),
        ),
    ),
    Claim(
        "convolutional",
        SOUPS,
        "Fine-tunes of a pretrained convolutional network average (here: above the mean run).",
        "left open",
        tuple(
            Finding(
                f"EfficientNet-Lite0 on PACS, uniform, {title}, 3 sweeps of 6",
                "soups-pacs",
                between("uniform", "mean of singles", split),
            )
            for split, title in (("test", "test"), (SHIFTS, "mean of shifts"))
        ),
    ),
    Claim(
        "by-text",
        "CLIP",
        "A soup finds images by text better than the best run, too (average precision).",
        "",
        (_of_clip("uniform", BEST, clip_soups.BY_TEXT),),
    ),
    Claim(
        "equal-start",
        SOUPS,
        "From scratch, networks do not average even if they share their initialisation.",
        "",
        (
            Finding(
                "handwriting after one step, best single less uniform, 5 sweeps of 12",
                BASES,
                lambda found: [-gain for gain in base_size.gains(found, "0", "uniform", "test")],
            ),
        ),
    ),
    Claim(
        "pretraining",
        SOUPS,
        "Soups gain more from a base that was pretrained on more.",
        "",
        tuple(
            Finding(
                f"handwriting, gain of uniform, all digits less {less}, {title}, 5 sweeps of 12",
                BASES,
                functools.partial(base_size.more, than=than, model="uniform", split=split),
            )
            for than, less in (("1/16", "a sixteenth"), ("0", "one step"))
            for split, title in (("test", "test"), (SHIFTS, "mean of shifts"))
        ),
    ),
    Claim(
        "loss-and-crop",
        SOUPS,
        "Runs that vary in loss function and smallest crop average as well.",
        "in the 58 runs of ViT-G/14",
        tuple(
            Finding(
                f"handwriting, loss and crops varied, uniform above {other}, {title}, 20 sweeps",
                QUESTIONS,
                by_varied("loss and crops too", "uniform", other, split),
            )
            for other in ("mean run", BEST)
            for split, title in (("test", "test"), (SHIFTS, "mean of shifts"))
        ),
    ),
    Claim(
        "large",
        "Model soups, WiSE-FT",
        "CLIP, ALIGN, ViT-G on ImageNet, Cars, DTD, SUN397, Food101, WILDS.",
        "",
        untested="Neither their data nor their weights are here, nor the hardware.",
    ),
    Claim(
        "distillation",
        WISE,
        "Distillation, and a pull to the start, do less than averaging with it.",
        "",
        tuple(
            Finding(
                f"handwriting, α = 0.5 minus {name} (by held-out), {title}, 20 seeds",
                QUESTIONS,
                by_training("fine-tuned, α = 0.5", f"{name}, chosen", split),
            )
            for name in questions.STRENGTHS
            for split, title in (("test", "test"), (SHIFTS, "mean of shifts"))
        ),
    ),
    Claim(
        "t5",
        SOUPS,
        "Soups of T5 gain on GLUE.",
        "+0.1 to +1.4",
        tuple(
            Finding(f"{T5}, {model}, {title}", "small_t5-sst2", by_t5(model, column))
            for model in ("greedy", "uniform")
            for column, title in (("test", "test"), ("reviews", "product reviews"))
        ),
    ),
    Claim(
        "line-shifts",
        WISE,
        "Half-way between zero-shot and fine-tuned the shifted accuracy is far above fine-tuned.",
        "+9.2 (CLIP ViT-B/16), +8.3 (ViT-L/14)",
        (
            Finding("ResNet-20, mean of shifts, 3 sweeps", "wise_ft-resnet", on_the_line(SHIFTS)),
            Finding(f"{PACS}, mean of shifts", "wise_ft-pacs", on_the_line(SHIFTS)),
            Finding(
                f"{SST2}, product reviews",
                "soups-sst2-moderate",
                between("WiSE-FT of best single, a = 0.5", BEST, SHIFTS),
            ),
            Finding(
                "ResNet-20, the base's own data, 3 sweeps",
                "wise_ft-resnet",
                on_the_line("lossless"),
            ),
            Finding(
                "handwriting, the base's own data, α chosen, 20 sweeps",
                "every-handwriting",
                between("WiSE-FT of best single", BEST, "fonts"),
            ),
        ),
    ),
    Claim(
        "line-reference",
        WISE,
        "On the data that was fine-tuned on, the best α gains as well (here: chosen on held-out).",
        "+1.3; +0.9",
        _everywhere("WiSE-FT of best single", BEST, "test"),
    ),
    Claim(
        "any-run",
        WISE,
        "Half-way to the base is a good place, whatever the hyper-parameters of the run.",
        "",
        tuple(
            Finding(f"handwriting, every run, {title}, 20 sweeps of 12", QUESTIONS, half_way(split))
            for split, title in (("test", "test"), (SHIFTS, "mean of shifts"))
        ),
    ),
    Claim(
        "training-time",
        WISE,
        "Nothing that is done while training does as well on the shifts.",
        "",
        tuple(
            Finding(
                f"handwriting, α = 0.5 minus {name}, mean of shifts, 20 seeds",
                QUESTIONS,
                by_training("fine-tuned, α = 0.5", name, SHIFTS),
            )
            for name in ("a quarter of the epochs", "a tenth of the rate", "EMA of decay 0.9")
        ),
    ),
    Claim(
        "head-alone",
        WISE,
        "A linear classifier gains on the line to the base, too (here: α chosen on held-out).",
        "",
        (
            Finding(
                "handwriting, test, 20 seeds",
                QUESTIONS,
                by_training("head alone, α chosen", "head alone", "test"),
            ),
        ),
    ),
    Claim(
        "diversity",
        WISE,
        "The base and a fine-tune of it differ more than two fine-tunes.",
        "",
        (
            Finding(
                "handwriting, share of test on which just one of the two is right, 20 sweeps",
                QUESTIONS,
                lambda found: less(
                    questions.difference(found, "base"), questions.difference(found, "runs")
                ),
            ),
        ),
    ),
    Claim(
        "ensemble-diversity",
        "Gontijo-Lopes et al.",
        "The more two runs err on different examples, the more their ensemble gains.",
        "",
        tuple(
            Finding(
                f"handwriting, gain of the {gain}, 66 pairs a sweep, 20 sweeps",
                QUESTIONS,
                functools.partial(questions.correlation, gain=gain),
                "r",
            )
            for gain in ("ensemble", "soup")
        ),
    ),
    Claim(
        "number",
        SOUPS,
        "Soups of more runs are more accurate.",
        "",
        tuple(
            Finding(f"handwriting, 12 runs less 2, {title}, 20 sweeps", QUESTIONS, members(split))
            for split, title in (("test", "test"), (SHIFTS, "mean of shifts"))
        ),
    ),
    Claim(
        "calibration-shifts",
        "Ovadia et al.",
        "Under growing shift, ensembles stay better calibrated than single models.",
        "",
        tuple(
            Finding(
                f"handwriting {change}, ECE of best single less that of the ensemble, 20 sweeps",
                QUESTIONS,
                calibrated(change, "ensemble", BEST),
            )
            for change in (
                "turned by 10",
                "turned by 20",
                "turned by 30",
                "noise of 4",
                "noise of 8",
            )
        ),
    ),
    Claim(
        "robustness",
        WISE,
        "The gain is effective robustness: above the line of models that saw the reference alone.",
        "",
        tuple(
            Finding(f"{setting}, {model}, {of}", data, above_the_line(model))
            for setting, of, data in (
                ("handwriting", "16 baselines, 5 sweeps", "wise_ft-handwriting"),
                ("ResNet-20", "8 baselines, 3 sweeps", "robustness-resnet"),
            )
            for model in ("α = 0.5", "fine-tuned")
        ),
    ),
    Claim(
        "sparse-best",
        SMS,
        "A soup of pruned and retrained models beats the best of them.",
        "up to +2",
        _at_phases("soup, uniform", "best candidate", *_PHASES)
        + _by_length(sparse_lengths.SOUP, sparse_lengths.BEST, 0.98, (1, 3, 10, 30, 100)),
    ),
    Claim(
        "sparse-mean",
        SMS,
        "A soup of pruned and retrained models beats their mean.",
        "",
        _at_phases("soup, uniform", "mean candidate", *_PHASES),
    ),
    Claim(
        "sparse-extreme",
        SMS,
        "At extreme sparsity the uniform soup falls before the greedy one.",
        "",
        _at_phases("soup, greedy", "soup, uniform", "0.98"),
    ),
    Claim(
        "sparse-longer",
        SMS,
        "With little retraining a single longer run can win (IMP with three times the epochs).",
        "",
        _at_phases("IMP, 3× the epochs", "soup, uniform", "0.98")
        + _by_length(sparse_lengths.LONGER, sparse_lengths.SOUP, 0.98, (1, 3, 10)),
    ),
    Claim(
        "sparse-crossing",
        SMS,
        "With enough retraining the soup overtakes that longer run.",
        "from 15 epochs a phase on",
        tuple(
            finding
            for sparsity in (0.9, 0.98)
            for column in ("test", SHIFTS)
            for finding in _by_length(
                sparse_lengths.SOUP, sparse_lengths.LONGER, sparsity, (30, 100), column=column
            )
        ),
    ),
    Claim(
        "sparse-reprune",
        SMS,
        "Averaging models that were pruned apart, and pruning again, loses.",
        "",
        _at_phases("soup, uniform", "IMP-RePrune", "0.98"),
    ),
    Claim(
        "sparse-again",
        SMS,
        "Retraining from an average beats retraining from a single model.",
        "",
        _by_length(sparse_lengths.MEAN, sparse_lengths.IMP, 0.98, (1, 3, 10, 30, 100)),
    ),
    Claim(
        "sparse-varied",
        SMS,
        "Varying the seed alone is the safest (gain over the best candidate, less that of others).",
        "",
        tuple(
            Finding(
                f"handwriting at {100 * sparsity:g} %, less {what.replace('-', ' ')}, 5 seeds",
                LENGTHS,
                safer(what, sparsity),
            )
            for sparsity in (0.9, 0.98)
            for what in ("weight-decay", "lr", "retrain-length")
        ),
    ),
    Claim(
        "window",
        "SWA, LAWA",
        "A mean along a run at a constant rate beats its last checkpoint.",
        "",
        (
            Finding(
                "a small GPT, best of 444 windows, 3 seeds",
                "pretraining-gpt",
                below_in_loss("best window, full grid", "last checkpoint"),
                "nat",
            ),
            Finding(
                "the same, 39 windows scored",
                "pretraining-gpt",
                below_in_loss("best window, budget", "last checkpoint"),
                "nat",
            ),
        ),
    ),
    Claim(
        "decay",
        "LAWA",
        "Such a window takes the place of a decay of the rate.",
        "",
        (
            Finding(
                "a small GPT, window minus a run whose rate fell to 0, 3 seeds",
                "pretraining-gpt",
                below_in_loss("best window, full grid", "rate fell to 0"),
                "nat",
            ),
        ),
    ),
    Claim(
        "zoo",
        "Zoo-Tuning",
        "Gates over several pretrained networks beat the best fine-tune of one.",
        "",
        (
            Finding(
                "handwriting, three networks, three times the epochs for the single one, 5 seeds",
                "zoo-handwriting",
                by_zoo("Zoo-Tuning", "best of the three, 3× the epochs"),
            ),
        ),
    ),
)
