"""Where metrics go beside metrics.jsonl: TensorBoard, Weights & Biases, or the user's own class."""

from learner.sinks.base import Sink
from learner.sinks.feeder import Feeder, Sinks, open_sinks

__all__ = ["Feeder", "Sink", "Sinks", "open_sinks"]
