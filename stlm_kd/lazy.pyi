import filelock as filelock
import numpy as np
import tokenizers as tokenizers
import torch as torch
from scipy import special as special
from torch import nn as nn
from torch.nn import functional as functional

__all__ = ["filelock", "functional", "nn", "np", "special", "tokenizers", "torch"]
