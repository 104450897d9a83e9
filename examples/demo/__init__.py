"""A small reference-guided inpainting model whose true correspondence is known, trained for attrace."""
