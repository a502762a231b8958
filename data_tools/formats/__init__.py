"""Dataset formats: what becomes of a published row. Importing the package registers every one of them."""

from data_tools.formats import multi_task, multi_turn, single_turn  # noqa: F401 - they register themselves
from data_tools.formats.registry import Format, all_formats, format_help, format_list, get_format

__all__ = ["Format", "all_formats", "format_help", "format_list", "get_format"]
