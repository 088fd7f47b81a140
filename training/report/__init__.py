"""A run or a comparison as one self-contained page: no file beside it, no request, no script.

``run_page`` and ``compare_page`` collect what a page says, ``words`` puts figures into sentences, ``charts``, ``circuit`` and
``thumbnails`` draw, ``page`` fills the templates.
"""
