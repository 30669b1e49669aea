"""Text on its way to tokens and back: tokenizer, chat templates, streaming detokenizer, stop strings.

Knows Hugging Face checkpoint folders, Unicode and Jinja. Knows nothing of gRPC, ZeroMQ, processes or tensors,
and imports neither torch nor transformers.
"""

from pagoda.text.chat_template import ChatTemplate
from pagoda.text.detokenizer import IncrementalDetokenizer
from pagoda.text.stop_strings import StopStringMatcher
from pagoda.text.tokenizer import TextTokenizer

__all__ = ["ChatTemplate", "IncrementalDetokenizer", "StopStringMatcher", "TextTokenizer"]
