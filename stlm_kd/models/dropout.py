"""Give a model other dropout probabilities than its checkpoint was trained with."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

_ENDINGS = ("dropout", "pdrop", "dropout_prob")


def set_dropout(model: PreTrainedModel, probability: float) -> None:
    """Set every dropout probability of a model, of hidden states and of attention, in place.

    Its configuration says the same afterwards, so that the saved model does too. Fields that it leaves unset
    (a classifier's own, which then is that of the hidden states) stay unset.

    Args:
        model: One of transformers' models, whose modules hold a probability in a ``Dropout`` or, for
            attention without a module, in an attribute of a name such as ``attention_dropout``.
        probability: Of an element to be zeroed in training.
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
