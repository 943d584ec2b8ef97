"""The web page of `cof web`: ask, look, drag, draw, compare.

`controls` and `view` hold what the page is set to and what it says in a link, `session` answers,
`render` writes the answers as HTML; `page` alone knows Gradio (extra `web`) and only wires them.
"""
