"""The web page of `cof web`: ask, look, drag, draw, compare.

`view` holds what the page is set to, and its link; `session` answers,
`render` writes the answers as HTML; `page` alone knows Gradio (extra `web`) and only wires them.
"""
