"""The prompts of a run: read from any source, checked before anything starts, issued in a fixed order."""

from learner.prompts.records import Prompt
from learner.prompts.source import PromptSource, open_prompts

__all__ = ["Prompt", "PromptSource", "open_prompts"]
