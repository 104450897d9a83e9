"""The vocabulary of a trace: names of contexts, kinds of keys, encodings, directions and levels."""

from __future__ import annotations

from typing import Literal, get_args

Context = Literal["reference", "text", "image-prompt", "self"]
"""What the keys of an attention call are: tokens of a reference picture, of a text, of an image prompt (IP-Adapter),
or of the generated picture itself."""

KeyKind = Literal["patch", "cls", "text", "pad", "other"]
"""What one key is: a patch with a position on a grid, a class token, a text token, padding, or something else."""

Encoding = Literal["scores", "factors"]
"""How a site class is stored: as scores, or as the queries and keys whose products they are."""

Status = Literal["recording", "complete", "interrupted"]
"""Whether the run that writes the trace is under way, complete, or interrupted."""

Direction = Literal["r2g", "g2r"]
"""Reference-to-generated (a map over the generated picture) or generated-to-reference (a map over the reference)."""

Level = Literal["ulam", "tlam", "hlam", "llam"]
"""Unified, time-level, head-level or layer-level attribution map (I2AM)."""

CONTEXTS: tuple[Context, ...] = get_args(Context)
CONTEXT_PREFERENCE: tuple[Context, ...] = ("reference", "image-prompt", "text", "self")
"""The contexts in the order in which one is taken where none was asked for."""

KEY_KINDS: tuple[KeyKind, ...] = get_args(KeyKind)
DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
LEVELS: tuple[Level, ...] = get_args(Level)
