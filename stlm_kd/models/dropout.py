"""Change a model's dropout probabilities."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

_ENDINGS = ("dropout", "pdrop", "dropout_prob")


def set_dropout(model: PreTrainedModel, probability: float) -> None:
    """Set every dropout probability of a model, of hidden states and of attention, in place.

    They are in ``Dropout`` modules or in attributes such as ``attention_dropout``. Also updates the
    configuration, and so the saved model. Unset fields (a classifier's own, which defaults to that of the
    hidden states) stay unset.
    """
    for name, value in model.config.to_dict().items():
        if _is_dropout(name, value):
            setattr(model.config, name, probability)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = probability
        for name, value in vars(module).items():
            if _is_dropout(name, value):
                setattr(module, name, probability)


def _is_dropout(name: str, value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and name.endswith(_ENDINGS)
