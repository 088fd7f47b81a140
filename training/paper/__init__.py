"""The experiments of Geng et al. 2023 (arXiv:2307.16723), repeated on the user's own data: one module per table or figure."""
