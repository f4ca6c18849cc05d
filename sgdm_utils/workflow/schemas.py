"""Reading YAML strictly and checking files against a JSON schema, without making every start wait for the error messages.

`jsonschema` explains well what is wrong, but takes a second to import (it builds a grammar of
addresses), and each notebook of a study reads its configuration. So the question "is it right?" goes
to `fastjsonschema`, and only when the answer is no is `jsonschema` asked why.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import fastjsonschema
import yaml

if TYPE_CHECKING:
    import jsonschema


class StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key that stands twice in one mapping; plain YAML keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands there twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


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
