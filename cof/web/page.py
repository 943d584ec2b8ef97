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
from PIL import Image

from cof.errors import CofError
from cof.focuses import FOCUSES
from cof.limits import MAX_UPLOAD_BYTES
from cof.web.render import render, render_message
from cof.web.session import DEMO, Session, load_examples, open_example
from cof.web.view import (
    RANGES,
    Controls,
    grounder_choices,
    read_query,
    read_strokes,
    write_boxes,
    write_commands,
    write_query,
)

if TYPE_CHECKING:
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


class Page:
    """The page for one model.

    Args:
        cof: answers; its settings are where the controls begin.
        model: what the visitor calls its model.
        options: how it is loaded otherwise, for the command lines that the page shows.
    """

    def __init__(self, cof: CoF, model: str, options: Sequence[str] = ()) -> None:
        self.cof, self.model, self.options = cof, model, options
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
                body_text_color_subdued="*neutral_600", body_text_color_subdued_dark="*neutral_400"
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

    def _lay_out(self) -> None:
        gr.HTML(
            "<h1>Look closer</h1><p>Ask about a detail. The model answers plainly, and again while "
            f"it looks at one place of the image. Model: {escape(self.model)}.</p>",
            elem_classes="cof-header",
        )
        self.session = gr.State(None, time_to_live=IDLE)
        with gr.Row(elem_classes="cof-page"):
            with gr.Column(elem_classes="cof-ask"):
                self._lay_out_question()
            with gr.Column(elem_classes="cof-results"):
                self.message = gr.HTML(elem_classes="cof-message-box")
                self.results = gr.HTML()
                with gr.Accordion("Reproduce this", open=False):
                    self.query = gr.Textbox(visible=False)
                    copied: Any = {"buttons": ["copy"], "interactive": False}
                    self.link = gr.Textbox(label="Link", **copied)
                    self.commands = gr.Textbox(label="Command line", lines=2, **copied)
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
            placeholder=" ",  # no word of a tool to draw on nothing
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

    def _lay_out_settings(self) -> None:
        first = self._lay_out_varied()
        info = "x1 y1 x2 y2 in 0..1 of the image; empty: where the model finds it"
        self.boxes = gr.Textbox(label="Look in this box", info=info)
        with gr.Accordion("Compare with a second setting", open=False):
            compare = gr.Checkbox(label="Give a second answer, with these settings")
            second = self._lay_out_varied()
        self.controls = [self.question, self.boxes, *first, compare, *second]

    def _lay_out_varied(self) -> list[gr.components.Component]:
        """Controls of `VARIED`, in its order."""
        begin = Controls.of(self.cof.settings)
        strength, expand = "lambda: how strongly (1: not at all)", "alpha: how far around the place"
        sliders = [
            gr.Slider(*RANGES["strength"], value=begin.strength, step=0.5, label=strength),
            gr.Slider(*RANGES["expand"], value=begin.expand, step=0.1, label=expand),
        ]
        focuses = {name: focus.help for name, focus in FOCUSES.items()}
        methods = [
            gr.Dropdown([(f"{k}: {v}", k) for k, v in each.items()], value=value, label=label)
            for each, value, label in (
                (grounder_choices(self.cof.settings), begin.grounder, "Where to look (grounder)"),
                (focuses, begin.focus, "How to look (focus)"),
            )
        ]
        return [*methods, *sliders]

    def _wire(self) -> None:
        asking = [self.session, *self.controls]
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

    def _on(
        self,
        triggers: Any,
        function: Callable[..., Update],
        inputs: list[gr.components.Component],
        show_progress: Literal["minimal", "hidden"] = "minimal",
    ) -> None:
        """Whoever asks, one computation runs at a time, and of a slider's moves the last counts."""
        shown = [self.message, self.results, self.commands, self.query]
        gr.on(
            triggers,
            function,
            inputs,
            [self.session, self.file, self.editor, *self.controls, *shown],
            show_progress=show_progress,
            show_progress_on=self.results,
            preprocess=False,  # it refuses numbers that are being typed; files come as paths
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
            controls = read_query(query, self.cof.settings)
            example = query.get("example")
            session = open_example(self.cof, example) if example else None
        except CofError as error:
            return self._say(error)
        update = self._set(session, controls)
        if session is not None:
            return update | self._present(session, controls)
        return update | self._say(
            f"This link is about {query['image']}: choose that file to see the same."
        )

    def _open(self, file: dict[str, Any], session: Session | None, *values: Any) -> Update:
        """A file of the visitor's own; what was drawn on another image is dropped."""
        controls = Controls(*values)
        if session is not None:
            controls = controls._replace(boxes="")
        try:
            opened = Session(self.cof, Path(file["path"]))
        except CofError as error:
            return {self.file: None, **self._say(error)}
        return {self.file: None, **self._set(opened, controls), **self._change(opened, *controls)}

    def _open_example(
        self, example: Mapping[str, str], session: Session | None, *values: Any
    ) -> Update:
        controls = Controls(*values)._replace(question=example["question"], boxes="")
        opened = open_example(self.cof, example["image"])
        return self._set(opened, controls) | self._present(opened, controls)

    def _draw(self, drawing: dict[str, Any], session: Session | None, *values: Any) -> Update:
        """Strokes put a box around them, until they are erased."""
        if session is None:
            return {self.query: gr.skip()}
        controls = Controls(*values)
        if drawing["background"] is None:  # the editor's bin has thrown away the image too
            update = self._change(session, *controls._replace(boxes="")) if controls.boxes else {}
            return {self.editor: _drawing(session), self.boxes: ""} | update
        box = read_strokes([Image.open(layer["path"]) for layer in drawing["layers"]])
        # nothing drawn and nothing erased: the page itself has put an image there
        if box is None and controls.boxes != session.drawn:
            return {self.query: gr.skip()}
        session.drawn = write_boxes([box]) if box else None
        boxes = session.drawn or ""
        return {self.boxes: boxes} | self._change(session, *controls._replace(boxes=boxes))

    def _ask(self, session: Session | None, *values: Any) -> Update:
        if session is None:
            return self._say(CofError("There is no image yet: drop one, or choose an example."))
        return self._present(session, Controls(*values).within_ranges())

    def _change(self, session: Session | None, *values: Any) -> Update:
        """As `_ask`, as soon as there is something to ask."""
        controls = Controls(*values).within_ranges()
        if session is None or not controls.question.strip():
            return {self.message: ""}
        return self._present(session, controls)

    def _present(self, session: Session, controls: Controls) -> Update:
        try:
            view = controls.view(self.cof.settings)
            shown = session.show(view)
        except CofError as error:
            return self._say(error)
        path = str(DEMO / session.name) if session.example else session.name
        commands = write_commands(view, path, ["--model", self.model, *self.options])
        return {
            self.message: "",
            self.results: render(shown),
            self.commands: "\n".join(commands),
            self.query: write_query(controls, session.name, session.example),
        }

    def _set(self, session: Session | None, controls: Controls) -> Update:
        return {
            self.session: session,
            self.editor: _drawing(session),
            **dict(zip(self.controls, controls, strict=True)),
        }

    def _say(self, said: str | CofError) -> Update:
        return {self.message: render_message(str(said), error=isinstance(said, CofError))}


def _drawing(session: Session | None) -> dict[str, Any] | None:
    if session is None:
        return None
    image = session.encoded.image.copy()
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    return {"background": image, "layers": [], "composite": None}
