"""Get more from a model without changing a weight."""

from didact.methods.prompting.exact_extract import exact_extract, exact_extract_rss, exact_extract_tune
from didact.methods.prompting.gpt3 import gpt3, gpt3_clean, gpt3_pretrain

__all__ = ["exact_extract", "exact_extract_rss", "exact_extract_tune", "gpt3", "gpt3_clean", "gpt3_pretrain"]
