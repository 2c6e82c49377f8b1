"""Trains the DeepLabs as their papers did: recipes, the training loop, losses and checkpoints."""

from .checkpoint import CheckpointError, Checkpoints
from .curves import draw_curves
from .engine import Trainer
from .frequencies import median_frequency_weights
from .losses import dice_loss, lovasz_loss, ohem_loss
from .network import build_network
from .recipe import Recipe
from .recipes import RECIPES
from .running import Running, Stopped, TrainingError
from .schedule import rate_factor
from .watch import Console, JsonLines, TensorBoard, Watcher

__all__ = [
    "RECIPES",
    "CheckpointError",
    "Checkpoints",
    "Console",
    "JsonLines",
    "Recipe",
    "Running",
    "Stopped",
    "TensorBoard",
    "Trainer",
    "TrainingError",
    "Watcher",
    "build_network",
    "dice_loss",
    "draw_curves",
    "lovasz_loss",
    "median_frequency_weights",
    "ohem_loss",
    "rate_factor",
]
