"""Reading YAML strictly and checking files against a JSON schema, without making every start wait for the error messages.

`jsonschema` explains well what is wrong, but takes a second to import (it builds a grammar of
addresses), and each notebook of a study reads its configuration. So the question "is it right?" goes
to `fastjsonschema`, and only when the answer is no is `jsonschema` asked why.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import fastjsonschema
import yaml

if TYPE_CHECKING:
    import jsonschema


_PLAIN = ("str", "int", "float", "bool", "null", "seq", "map")
_KINDS = {"timestamp": "date", "binary": "bytes"}
_MISLEADING = re.compile(r".*[:_]|[-+]?0[0-9]")  # sexagesimal, grouped, octal


class StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses what is easily something else than what was meant.

    A key that stands twice in one mapping (plain YAML keeps the last), keys and values that are
    neither text, number, truth value, list nor mapping (2026-11-29 is a date, 1 no name), numbers that
    are read as others than they look (1:30 is 90, 010 is 8), and references to other places (a few lines
    of them can stand for gigabytes).
    """

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(
                None, None, f"*{event.anchor}: write out what it refers to", event.start_mark
            )
        return super().compose_node(parent, index)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        kind = node.tag.rpartition(":")[2]
        text = node.value if isinstance(node.value, str) else node.tag
        if kind not in _PLAIN:
            raise yaml.constructor.ConstructorError(
                None, None, f"{text!r} is read as a {_KINDS.get(kind, kind)}: put it in quotes",
                node.start_mark,
            )  # fmt: skip
        value = super().construct_object(node, deep)
        if kind in ("int", "float") and _MISLEADING.match(text):
            raise yaml.constructor.ConstructorError(
                None, None, f"{text!r} is read as {value!r}: write that, or put it in quotes",
                node.start_mark,
            )  # fmt: skip
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is no text: put it in quotes", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands there twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def load_yaml(text: str) -> Any:
    """Return what a YAML text says.

    Raises
    ------
    yaml.YAMLError
        For whatever cannot be read, with its place where that is known.
    """
    try:
        return yaml.load(text, Loader=StrictLoader)
    except (ValueError, OverflowError, RecursionError, TypeError) as error:
        raise yaml.YAMLError(f"a value cannot be read ({type(error).__name__}: {error})") from error


def violations(schema: Mapping[str, Any], content: Any) -> Iterator[jsonschema.ValidationError]:
    """Everything in which `content` violates `schema`.

    Parameters
    ----------
    schema : mapping, JSON schema of draft 7 or later
    content : what a YAML or JSON file holds

    Yields
    ------
    jsonschema.ValidationError
        In the order in which jsonschema finds them; nothing where the content is right.
    """
    try:
        fastjsonschema.validate(dict(schema), content)
    except fastjsonschema.JsonSchemaException:
        import jsonschema  # see above

        yield from jsonschema.Draft202012Validator(schema).iter_errors(content)


def place(error: jsonschema.ValidationError) -> str:
    """Where in the file an error is, ``"a.b[2]"``, or ``"the file"``."""
    where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error.absolute_path)
    return where.lstrip(".") or "the file"
