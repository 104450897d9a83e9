"""Every label of a layer that is shown names that layer and no other."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from attrace.schemas import SelectionError
from attrace.schemas.layers import find_layers, short_labels

PATHS = st.lists(
    st.lists(st.sampled_from(["a", "b", "c", "0", "1"]), min_size=1, max_size=5).map(".".join),
    min_size=1,
    max_size=6,
    unique=True,
)

UNET = [
    f"{block}.attentions.{attention}.transformer_blocks.0.{module}"
    for block in ("down_blocks.1", "up_blocks.1")
    for attention in (0, 1)
    for module in ("attn1", "attn2")
]


@given(PATHS)
def test_short_labels_name_their_layers(paths: list[str]) -> None:
    labels = short_labels(paths)
    assert all(label.split(".")[0] == path.split(".")[0] for label, path in zip(labels, paths, strict=True))
    assert [find_layers(label, paths) for label in labels] == [[path] for path in paths]


@given(PATHS, st.data())
def test_a_label_of_some_layers_names_the_same_layer_of_all_or_is_refused(
    paths: list[str], data: st.DataObject
) -> None:
    some = data.draw(st.lists(st.sampled_from(paths), min_size=1, unique=True))
    for label, path in zip(short_labels(some), some, strict=True):
        if label in paths:  # what is the whole path of a layer names that layer
            continue
        try:
            found = find_layers(label, paths)
        except SelectionError as error:
            found = [path] if path in str(error) else []
        assert found == [path]


def test_a_label_that_may_be_several_lists_them() -> None:
    with pytest.raises(SelectionError) as raised:
        find_layers("up_blocks.1.1.0", UNET)
    assert str(raised.value) == (
        "layer 'up_blocks.1.1.0' may be up_blocks.1.attentions.1.transformer_blocks.0.attn1 or "
        "up_blocks.1.attentions.1.transformer_blocks.0.attn2: give more of its path, or a glob for all"
    )
    assert find_layers("up_blocks.1.1.0.attn2", UNET) == ["up_blocks.1.attentions.1.transformer_blocks.0.attn2"]


@pytest.mark.parametrize("label", ["up_blocks.1.1", "blocks.1.1.0", "up_blocks.1.0.1", "mid_block.0.0", "", "attn2"])
def test_a_label_of_other_numbers_or_another_block_names_nothing(label: str) -> None:
    assert find_layers(label, UNET) == []


def test_a_glob_may_name_several() -> None:
    assert find_layers("up_blocks.*.attn2", UNET) == [
        f"up_blocks.1.attentions.{attention}.transformer_blocks.0.attn2" for attention in (0, 1)
    ]
