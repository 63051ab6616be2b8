"""The options that only `eval.py --folds` reads."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from modeling_mmemo.data.corpora import CORPORA


@dataclass
class FoldArguments:
    """
    The corpora that a cross-validation leaves out of training; by default it leaves out speakers of one corpus.

    Raises:
        ValueError: If a value is invalid, or two options contradict each other.
    """

    leave_out: list[str] = field(
        default_factory=list,
        metadata={
            "help": "With eval.py --folds, known corpora among corpora; each is tested on by a model that is trained "
            "on all other corpora. By default the folds are speakers of one corpus."
        },
    )
    test_corpora: list[str] = field(
        default_factory=list,
        metadata={
            "help": "With leave_out, known corpora that are never trained on; they are tested on by a model that is "
            "trained on all of corpora."
        },
    )

    def __post_init__(self) -> None:
        for name in ("leave_out", "test_corpora"):
            values = getattr(self, name)
            if unknown := [corpus for corpus in values if corpus not in CORPORA]:
                raise ValueError(f"{name}={values}: {unknown} are unknown; choose some of {sorted(CORPORA)}.")
            if len(set(values)) < len(values):
                raise ValueError(f"{name}={values} must not name a corpus twice.")
        if self.test_corpora and not self.leave_out:
            raise ValueError(
                f"test_corpora={self.test_corpora} needs leave_out; set it, or train with train.py and evaluate with "
                "eval.py --corpora."
            )

    def check(self, corpora: Sequence[str], fold: int | None) -> None:
        """Raises a `ValueError` if the options of the training data contradict these."""
        if not self.leave_out:
            return
        if foreign := [corpus for corpus in self.leave_out if corpus not in corpora]:
            raise ValueError(
                f"leave_out={self.leave_out}: {foreign} are not among corpora={corpora}. Add them to corpora, or to "
                "test_corpora to test on them only."
            )
        if len(set(corpora)) < 2:
            raise ValueError(
                f"leave_out={self.leave_out} contradicts corpora={corpora}: no corpus remains to train on. Add one to "
                "corpora, or leave leave_out out, for the folds of speakers."
            )
        if trained := [corpus for corpus in self.test_corpora if corpus in corpora]:
            raise ValueError(
                f"test_corpora={self.test_corpora} contradicts corpora={corpora}: {trained} would be trained on. Name "
                "them in one of the two only; leave_out tests on corpora that other models are trained on."
            )
        if fold is not None:
            raise ValueError(
                f"fold={fold} contradicts leave_out={self.leave_out}, which leaves out whole corpora. Leave fold out."
            )
