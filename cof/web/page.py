"""The page itself: Gradio components, wired to the functions beside this file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

# no calls home: read as gradio is imported
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"

import gradio as gr

from cof.errors import CofError
from cof.limits import MAX_UPLOAD_BYTES
from cof.web.controls import (
    EXPAND_RANGE,
    STRENGTH_RANGE,
    Controls,
    controls_of,
    draw_strokes,
    focus_choices,
    grounder_choices,
    read_strokes,
)
from cof.web.render import present, render_message
from cof.web.session import DEMO, Session, load_examples, open_example
from cof.web.view import read_query, value_of, write_boxes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cof.pipeline import CoF

PREVIEW_SIDE = 1024  # longer side of the image to draw on, pixels
SESSIONS = 64  # whose images are kept in memory
IDLE = 3600  # seconds after which a visitor's image is forgotten

LINK = """(query) => {
    if (!query) return "";
    const theme = new URLSearchParams(location.search).get("__theme");
    history.replaceState(null, "", "?" + query + (theme ? "&__theme=" + theme : ""));
    return location.origin + location.pathname + "?" + query;
}"""
"""Puts the view into the address bar, and returns the link to it."""

LANDING = {"example": "scene-4.png", "question": "What letter is on the green square?"}
"""What the embedded model shows a visitor who has not asked yet."""

Update: TypeAlias = "dict[gr.components.Component, Any]"
Mask: TypeAlias = "NDArray[np.bool_]"
Drawing: TypeAlias = "dict[str, Any]"

LOOK_AT = {
    "where the model finds it": "found",
    "in a box around my strokes": "box",
    "in my strokes": "mask",
}


class Page:
    """The page for one model.

    Attributes:
        blocks: the Gradio application.
    """

    def __init__(self, cof: CoF, model: str, options: Sequence[str] = ()) -> None:
        """
        Args:
            cof: answers; its settings are where the controls begin.
            model: what the visitor calls its model.
            options: how it is loaded otherwise, for the command lines that the page shows.
        """
        self.cof = cof
        self.model = model
        self.options = options
        self.blocks = gr.Blocks(title="CoF", analytics_enabled=False, delete_cache=(IDLE, IDLE))
        with self.blocks:
            self._lay_out()
            self._wire()

    def launch(self, host: str, port: int) -> str:
        """Serve the page in the background; returns its address.

        Raises:
            OSError: the port is taken.
        """
        fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
        _, address, _ = self.blocks.launch(
            server_name=host,
            server_port=port,
            max_file_size=MAX_UPLOAD_BYTES,
            state_session_capacity=SESSIONS,
            theme=gr.themes.Base(**fonts).set(
                body_text_color_subdued="*neutral_600",
                body_text_color_subdued_dark="*neutral_400",
            ),
            css_paths=[Path(__file__).with_name("page.css")],
            footer_links=[],
            ssr_mode=False,
            share=False,
            run_history=False,
            quiet=True,
            prevent_thread_lock=True,
        )
        return str(address)

    def wait(self) -> None:
        """Until the program is interrupted."""
        self.blocks.block_thread()

    def _lay_out(self) -> None:
        gr.HTML(
            "<h1>Look closer</h1><p>Ask about a detail. The model answers plainly, and again while "
            f"it looks at one place of the image. Model: {escape(self.model)}.</p>",
            elem_classes="cof-header",
        )
        self.session = gr.State(None, time_to_live=IDLE)
        self.mask = gr.State(None, time_to_live=IDLE)
        with gr.Row(elem_classes="cof-page"):
            with gr.Column(elem_classes="cof-ask"):
                self._lay_out_question()
            with gr.Column(elem_classes="cof-results"):
                self.message = gr.HTML(elem_classes="cof-message-box")
                self.results = gr.HTML()
                with gr.Accordion("Reproduce this", open=False):
                    self._lay_out_record()
            with gr.Column(elem_classes="cof-settings"):
                self._lay_out_settings()
        gr.HTML("<h2>Examples</h2>", elem_classes="cof-header")
        with gr.Row(elem_classes="cof-examples"):
            self.examples = [
                (gr.Button(each["question"], icon=DEMO / each["image"], size="sm"), each)
                for each in load_examples()
            ]

    def _lay_out_question(self) -> None:
        self.file = gr.File(show_label=False, label="Image", height=64, elem_classes="cof-file")
        self.editor = gr.ImageEditor(
            show_label=False,
            label="Image",
            type="pil",
            sources=(),
            transforms=(),
            layers=False,
            buttons=[],
            brush=gr.Brush(colors=["#ffb000"], color_mode="fixed"),
            height=400,
            elem_classes="cof-editor",
        )
        gr.HTML(
            '<p class="cof-note">Brush over a place to have the model look there.</p>',
            elem_classes="cof-hint",
        )
        self.question = gr.Textbox(label="Question", max_lines=4)
        self.ask = gr.Button("Ask", variant="primary")

    def _lay_out_record(self) -> None:
        self.query = gr.Textbox(visible=False)
        self.link = gr.Textbox(label="Link", buttons=["copy"], interactive=False)
        self.commands = gr.Textbox(
            label="Command line", buttons=["copy"], interactive=False, lines=2
        )
        self.mask_link = gr.HTML(elem_classes="cof-message-box")
        self.record = gr.Code(label="JSON", language="json", max_lines=16)

    def _lay_out_settings(self) -> None:
        sliders = self._sliders()
        self.look_at = gr.Radio(list(LOOK_AT.items()), value="found", label="Look")
        self.boxes = gr.Textbox(label="Box", info="x1 y1 x2 y2 in 0..1 of the image", visible=False)
        first = [*self._methods(), *sliders]
        with gr.Accordion("Compare with a second setting", open=False):
            compare = gr.Checkbox(label="Give a second answer, with these settings")
            sliders = self._sliders()
            second = [*self._methods(), *sliders]
        self.controls = [self.question, self.look_at, self.boxes, *first, compare, *second]

    def _sliders(self) -> list[gr.Slider]:
        """Lambda and alpha."""
        defaults = self.cof.settings
        return [
            gr.Slider(
                *STRENGTH_RANGE,
                value=value_of(defaults, "strength"),
                step=0.5,
                label="lambda: how strongly (1: not at all)",
            ),
            gr.Slider(
                *EXPAND_RANGE,
                value=defaults.expand,
                step=0.1,
                label="alpha: how far around the place",
            ),
        ]

    def _methods(self) -> list[gr.Dropdown]:
        """Grounder and focus."""
        defaults = self.cof.settings
        grounders, focuses = grounder_choices(defaults), focus_choices()
        return [
            gr.Dropdown(
                _choices(grounders), value=defaults.grounder_name, label="Where to look (grounder)"
            ),
            gr.Dropdown(_choices(focuses), value=defaults.focus.name, label="How to look (focus)"),
        ]

    def _wire(self) -> None:
        asking = [self.session, self.mask, *self.controls]
        changes = [
            control.input for control in self.controls if control not in (self.question, self.boxes)
        ]
        self._on(self.blocks.load, self._restore, [])
        self._on(self.file.upload, self._open, [self.file, *asking])
        self._on([self.ask.click, self.question.submit, self.boxes.submit], self._ask, asking)
        self._on(changes, self._change, asking, show_progress="hidden")
        self._on(self.editor.input, self._draw, [self.editor, *asking], show_progress="hidden")
        for button, example in self.examples:
            self._on(button.click, partial(self._open_example, example), asking)
        self.look_at.change(
            lambda look_at: gr.update(visible=look_at == "box"),
            self.look_at,
            self.boxes,
            queue=False,
            show_progress="hidden",
            api_visibility="private",
        )

    def _on(
        self,
        triggers: Any,
        function: Callable[..., Update],
        inputs: list[gr.components.Component],
        show_progress: Literal["minimal", "hidden"] = "minimal",
    ) -> None:
        """Whoever asks, one computation runs at a time, and of a slider's moves the last counts."""
        shown = [self.message, self.results, self.commands, self.query, self.record, self.mask_link]
        gr.on(
            triggers,
            function,
            inputs,
            [self.session, self.mask, self.file, self.editor, *self.controls, *shown],
            show_progress=show_progress,
            show_progress_on=self.results,
            trigger_mode="always_last",
            concurrency_limit=1,
            concurrency_id="model",
            api_visibility="private",
        ).then(None, self.query, self.link, js=LINK, api_visibility="private")

    def _restore(self, request: gr.Request) -> Update:
        """What the address says; without a view in it, the embedded model shows an example."""
        query = dict(request.query_params)
        if not {"example", "image"} & query.keys():
            if self.cof.engine.dialect.name != "tiny":
                return {self.message: ""}
            query = LANDING
        try:
            view = read_query(query, self.cof.settings)
            controls = controls_of(view)
            session = open_example(self.cof, view.image) if view.example else None
        except CofError as error:
            return self._refuse(error)
        return self._set(session, view.mask, controls) | (
            self._present(session, view.mask, controls)
            if session is not None
            else self._say(f"This link is about {view.image}: choose that file to see the same.")
        )

    def _open(self, path: str, session: Session | None, mask: Mask | None, *values: Any) -> Update:
        """A file of the visitor's own; what was drawn on another image is dropped."""
        controls = Controls(*values)
        try:
            opened = Session(self.cof, Path(path))
        except CofError as error:
            return {self.file: None, **self._refuse(error)}
        if session is not None:
            mask, controls = None, controls._replace(look_at="found", boxes="")
        return (
            {self.file: None}
            | self._set(opened, mask, controls)
            | self._say(f"{opened.name}, {opened.image.width} x {opened.image.height} pixels")
            | self._change(opened, mask, *controls)
        )

    def _open_example(
        self, example: Mapping[str, str], session: Session | None, mask: Mask | None, *values: Any
    ) -> Update:
        controls = Controls(*values)._replace(
            question=example["question"], look_at="found", boxes=""
        )
        opened = open_example(self.cof, example["image"])
        return self._set(opened, None, controls) | self._present(opened, None, controls)

    def _draw(
        self, drawing: Drawing, session: Session | None, mask: Mask | None, *values: Any
    ) -> Update:
        """Strokes move the look to them; without any it goes back to the place found."""
        if session is None:
            return {self.mask: mask}
        controls, strokes = Controls(*values), read_strokes(drawing["layers"])
        update: Update = {self.mask: mask}
        if drawing["background"] is None:  # the editor's bin has thrown away the image too
            update[self.editor] = _drawing(session, None)
        if strokes is not None:
            mask, box = strokes
            look_at = "box" if controls.look_at == "found" else controls.look_at
            controls = controls._replace(look_at=look_at, boxes=write_boxes([box]))
        elif mask is not None:
            mask, controls = None, controls._replace(look_at="found", boxes="")
        else:  # the page itself has put an image there
            return update
        update |= {self.mask: mask, self.look_at: controls.look_at, self.boxes: controls.boxes}
        return update | self._change(session, mask, *controls)

    def _ask(self, session: Session | None, mask: Mask | None, *values: Any) -> Update:
        if session is None:
            return self._refuse(CofError("There is no image yet: drop one, or choose an example."))
        return self._present(session, mask, Controls(*values))

    def _change(self, session: Session | None, mask: Mask | None, *values: Any) -> Update:
        """As `_ask`, as soon as there is something to ask."""
        controls = Controls(*values)
        if session is None or not controls.question.strip():
            return {self.mask: mask}
        return self._present(session, mask, controls)

    def _present(self, session: Session, mask: Mask | None, controls: Controls) -> Update:
        try:
            view = controls.view(self.cof.settings, session.name, session.example, mask)
            presented = present(session, view, self.model, self.options)
        except CofError as error:
            return self._refuse(error)
        return {
            self.message: "",
            self.results: presented.results,
            self.commands: presented.commands,
            self.query: presented.query,
            self.record: presented.record,
            self.mask_link: presented.mask,
        }

    def _set(self, session: Session | None, mask: Mask | None, controls: Controls) -> Update:
        return {
            self.session: session,
            self.mask: mask,
            self.editor: _drawing(session, mask),
            **dict(zip(self.controls, controls, strict=True)),
        }

    def _say(self, text: str) -> Update:
        return {self.message: render_message(text)}

    def _refuse(self, error: CofError) -> Update:
        return {self.message: render_message(str(error), error=True)}


def _drawing(session: Session | None, mask: Mask | None) -> Drawing | None:
    """The image to draw on, with a mask already drawn if there is one."""
    if session is None:
        return None
    image = session.image.copy()
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    layers = [] if mask is None else [draw_strokes(mask, image.size)]
    return {"background": image, "layers": layers, "composite": None}


def _choices(help: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(f"{name}: {text}", name) for name, text in help.items()]
