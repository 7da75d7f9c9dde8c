"""The panel beside napari's picture: cases, lesions in the order of what to check first, verdicts, corrected labels.

What it shows is read from the result folders, what it is told goes to `workbench.experiment.verdicts` at once. One canvas shows one
plane: napari has no linked orthogonal views of its own yet, so `H` turns the same place axial, coronal, sagittal.

| key | | key | |
|---|---|---|---|
| J, K | next, previous lesion | T | accept: a true lesion |
| Shift-J, Shift-K | next, previous case | R | reject: no lesion |
| D | next window | W | needs edit: its outline is wrong |
| G | next stage | U | take the verdict back |
| H | next plane | Shift-S | keep the corrected labels |
"""

from __future__ import annotations

import getpass
from collections.abc import Callable
from functools import partial
from pathlib import Path

import napari
import numpy as np
from qtpy.QtCore import QEvent, QSignalBlocker, Qt
from qtpy.QtWidgets import (
    QAbstractItemView,
    QButtonGroup,
    QComboBox,
    QFileDialog,
    QGridLayout,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QLineEdit,
    QMainWindow,
    QMessageBox,
    QPushButton,
    QSizePolicy,
    QTableWidget,
    QTableWidgetItem,
    QVBoxLayout,
    QWidget,
)

from workbench.experiment import reading, verdicts
from workbench.lab import qa
from workbench.lab.qa import worklist
from workbench.lab.qa.look import PAINTED, PLANES, STAGES, WINDOWS, Look
from workbench.volume import Refused

MARKS = {"accept": "✓ accept", "reject": "✗ reject", "needs edit": "✎ edit"}
COLUMNS = {"nr": "number", "score": "forest score", "ml": "volume in ml", "mm": "longest axial diameter",
           "forest": "what the forest decided", "verdict": "what you said"}  # fmt: skip
AT_POINT, AS_MADE = "labels at ", "as made"
ZOOM_MM = 160.0  # a jump shows at least this much of the plane


class Panel(QWidget):
    TITLE = "Review"

    def __init__(self, napari_viewer: napari.viewer.Viewer):
        super().__init__()
        self.viewer = napari_viewer
        self.places: list[Path] = []
        self.case: reading.ResultFolder | None = None
        self.lesions = worklist.order(reading.ResultFolder(Path(), {}).lesions())
        self.review, self.sha = verdicts.Review(), ""
        self.look = Look(napari_viewer)
        self._build()
        self._bind()

    # ------------------------------------------------------------------------------------------ what can be done

    def open(self, path: str | Path) -> None:
        """Open a result folder, the first of a folder of results, or that of an experiment."""
        self.places = worklist.cases(path)
        with QSignalBlocker(self.choice):
            self.choice.clear()
            self.choice.addItems([place.name for place in self.places])
        own = [n for n, place in enumerate(self.places) if place.resolve() == Path(path).resolve()]
        self.show_case(own[0] if own else 0)

    def show_case(self, number: int) -> None:
        """The case of this number in the list; what cannot be read is said and the list stays."""
        if not 0 <= number < len(self.places) or not self.may_leave():
            self._pick(self.shown_number())
            return
        place = self.places[number]
        try:
            case, review = reading.result(place), verdicts.read(place)
            sha = verdicts.fingerprint(place)
            self.viewer.layers.clear()
            qa.add(self.viewer, place)
            self.look.veil()
        except Refused as refused:
            self._say(str(refused))
            self._pick(self.shown_number())
            return
        self.case, self.review, self.sha = case, review, sha
        self.lesions = worklist.order(case.lesions(), case.info.get("forest_threshold"))
        self._points()
        self._pick(number)
        self._say("")
        if qa.CORRECTED in self.viewer.layers:
            self._watch(self.viewer.layers[qa.CORRECTED])
        self._fill()
        for which, do in (("Stage", self._stage), ("Window", self._window), ("Plane", self._plane)):
            do(self.sets[which].checkedButton().text())
        if len(self.lesions):
            self.table.selectRow(0)
        else:
            self.note.clear()

    def shown_number(self) -> int:
        return next((n for n, place in enumerate(self.places) if self.case and place == self.case.path), -1)

    def go(self, to: int) -> None:
        """To the next (1) or the previous (-1) lesion."""
        row = min(max(self.table.currentRow() + to, 0), self.table.rowCount() - 1)
        if row >= 0:
            self.table.selectRow(row)

    def candidate(self) -> int | None:
        """The number of the lesion that is chosen in the table."""
        row = self.table.currentRow()
        return int(self.lesions.candidate.iloc[row]) if 0 <= row < len(self.lesions) else None

    def jump(self) -> None:
        """Slice and centre of the picture to the lesion that is chosen."""
        if (candidate := self.candidate()) is None:
            return
        row = self.lesions[self.lesions.candidate == candidate].iloc[0]
        at = np.array([row.z_mm, row.y_mm, row.x_mm], float)
        self.viewer.dims.set_point(range(3), at)
        self.viewer.scene.camera.center = tuple(at[list(self.viewer.dims.displayed)])
        widest = max(self.viewer.dims.range[a].stop for a in self.viewer.dims.displayed)
        self.viewer.scene.camera.zoom = max(
            self.viewer.scene.camera.zoom, min(self.viewer.canvas.size) / min(widest, ZOOM_MM)
        )
        if "candidates" in self.viewer.layers:
            points = self.viewer.layers["candidates"]
            points.selected_data = set(np.flatnonzero(points.features.candidate == candidate).tolist())
        said = self.review.of(self.sha).get(candidate)
        self.note.setText(said.note if said else "")
        self.reason.setText(str(row.reason) if isinstance(row.reason, str) else "")

    def judge(self, verdict: str) -> None:
        """Give the chosen lesion a verdict, with the note as it stands; on disk at once."""
        if (candidate := self.candidate()) is None:
            return
        note, who = self.note.text().strip(), self.who.text()
        self._put(lambda: verdicts.give(self.case.path, candidate, verdict, note, who))

    def withdraw(self) -> None:
        if (candidate := self.candidate()) is not None:
            self._put(lambda: verdicts.withdraw(self.case.path, candidate))

    def note_again(self) -> None:
        """A note that changed goes to the verdict that is there already."""
        said = self.review.of(self.sha).get(self.candidate())
        if said is not None and said.note != self.note.text().strip():
            self.judge(said.verdict)

    def correct(self) -> None:
        """A layer to paint corrected labels on: those kept, or a copy of the result's."""
        if self.case is None or "labels" not in self.viewer.layers:
            return
        self._as_made()
        if self.look.drawn is None:
            labels = self.viewer.layers["labels"]
            made = self.viewer.add_labels(
                np.array(labels.data), name=qa.CORRECTED, colormap=dict(qa.LABEL_COLOURS), opacity=0.45, scale=labels.scale,
                units=labels.units, metadata=labels.metadata)  # fmt: skip
            self._watch(made)
        layer = self.look.drawn
        self._stage("result")
        self.viewer.layers.selection.active = layer
        layer.selected_label, layer.mode = 2, "paint"
        self._say("paint 1 liver, 2 tumor, 0 neither; then keep")

    def keep(self) -> None:
        """Keep the corrected labels beside the result that they correct."""
        if (layer := self.look.drawn) is None:
            self._say(f"there is no layer '{qa.CORRECTED}' to keep: Correct labels makes it")
            return
        try:
            file = verdicts.correct(layer.metadata["folder"], np.asarray(layer.data), self.who.text())
            self.review = verdicts.read(self.case.path) if self.case else self.review
        except (Refused, OSError) as error:
            self._say(str(error))
            return
        layer.metadata[PAINTED] = False
        if self.case:
            self._state()
        self._say(f"corrected labels kept: {file.name}")

    def may_leave(self) -> bool:
        """False when painted labels are not kept and the reader wants to stay."""
        if not self.painted:
            return True
        kinds = QMessageBox.StandardButton
        answer = QMessageBox.question(
            self, "Corrected labels", "Keep the corrected labels?", kinds.Save | kinds.Discard | kinds.Cancel
        )
        if answer == kinds.Save:
            self.keep()
        elif answer == kinds.Discard:
            self.look.drawn.metadata[PAINTED] = False
        return not self.painted

    @property
    def painted(self) -> bool:
        """Whether there is something on it that is not kept."""
        return self.look.drawn is not None and self.look.drawn.metadata[PAINTED]

    # ------------------------------------------------------------------------------------------ the widget

    def _build(self) -> None:
        box = QVBoxLayout(self)
        box.setContentsMargins(8, 8, 8, 8)
        self.choice, self.state, self.reason, self.said = QComboBox(), QLabel(), QLabel(), QLabel()
        self.choice.currentIndexChanged.connect(self.show_case)
        self.choice.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        for label in (self.state, self.reason, self.said):
            label.setWordWrap(True)
        box.addLayout(
            _row(
                _button("◀", "previous case (Shift-K)", lambda: self.show_case(self.shown_number() - 1), 32),
                self.choice,
                _button("▶", "next case (Shift-J)", lambda: self.show_case(self.shown_number() + 1), 32),
                _button("Open…", "a result folder, a folder of them, or an experiment", self._ask),
            )
        )
        box.addWidget(self.state)
        self.point, self.point_row = QComboBox(), QWidget()
        self.point.setToolTip("what the forest would keep at another operating point; the result stays as it is")
        self.point.currentTextChanged.connect(self._point)
        line = _row(QLabel("Forest at"), self.point)
        line.setContentsMargins(0, 0, 0, 0)
        self.point_row.setLayout(line)
        box.addWidget(self.point_row)
        self.table = _lesion_table()
        self.table.itemSelectionChanged.connect(self.jump)
        self.table.itemClicked.connect(lambda _: self.jump())
        box.addWidget(self.table, 1)
        box.addWidget(self.reason)
        self.note, self.who = QLineEdit(), QLineEdit(getpass.getuser())
        self.note.setPlaceholderText("a note to the verdict")
        self.note.editingFinished.connect(self.note_again)
        box.addLayout(
            _row(
                _button("Accept", "a true lesion (T)", lambda: self.judge("accept")),
                _button("Reject", "no lesion (R)", lambda: self.judge("reject")),
                _button("Needs edit", "a lesion with a wrong outline (W)", lambda: self.judge("needs edit")),
                _button("Undo", "take the verdict back (U)", self.withdraw),
            )
        )
        box.addWidget(self.note)
        box.addLayout(_row(QLabel("Reader"), self.who))
        box.addLayout(
            _row(
                _button("Correct labels", "paint on a copy of the labels, or on those kept before", self.correct),
                _button("Keep them", "beside the result (Shift-S)", self.keep),
            )
        )
        self.sets: dict[str, QButtonGroup] = {}
        grid = QGridLayout()
        grid.setColumnStretch(1, 1)
        sets = (
            ("Stage (G)", STAGES, self._stage),
            ("Window (D)", WINDOWS, self._window),
            ("Plane (H)", PLANES, self._plane),
        )
        for row, (title, names, do) in enumerate(sets):
            label = QLabel(title)
            label.setSizePolicy(QSizePolicy.Policy.Fixed, QSizePolicy.Policy.Fixed)
            grid.addWidget(label, row, 0, Qt.AlignmentFlag.AlignTop)
            grid.addLayout(self._set(title, list(names), do), row, 1)
        box.addLayout(grid)
        for which, first in (("Stage", list(STAGES).index("result")), ("Window", 0), ("Plane", 0)):
            self._down(which, first)
        box.addWidget(self.said)
        keys = QLabel("J K lesion · Shift-J Shift-K case · T R W verdict · U undo")
        keys.setWordWrap(True)
        keys.setToolTip(__doc__ or "")
        box.addWidget(keys)

    def _set(self, title: str, names: list[str], do: Callable[[str], None]) -> QGridLayout:
        """Buttons of which one is down."""
        group, grid = QButtonGroup(self), QGridLayout()
        grid.setSpacing(3)
        for n, name in enumerate(names):
            button = _button(name, "", partial(do, name))
            button.setCheckable(True)
            group.addButton(button, n)
            grid.addWidget(button, n // 3, n % 3)
        self.sets[title.split()[0]] = group
        return grid

    def _bind(self) -> None:
        def turn(which: str) -> None:
            buttons = self.sets[which].buttons()
            buttons[(self.sets[which].checkedId() + 1) % len(buttons)].click()

        keys: dict[str, Callable[[], object]] = {
            "J": lambda: self.go(1),
            "K": lambda: self.go(-1),
            "Shift-J": lambda: self.show_case(self.shown_number() + 1),
            "Shift-K": lambda: self.show_case(self.shown_number() - 1),
            "T": lambda: self.judge("accept"),
            "R": lambda: self.judge("reject"),
            "W": lambda: self.judge("needs edit"),
            "U": self.withdraw,
            "Shift-S": self.keep,
            "G": lambda: turn("Stage"),
            "D": lambda: turn("Window"),
            "H": lambda: turn("Plane"),
        }
        for key, do in keys.items():
            self.viewer.bind_key(key, lambda _, do=do: do(), overwrite=True)

    def showEvent(self, event) -> None:
        """Listen to napari's own window: a panel that was closed is no longer in it, and still asks before it closes."""
        super().showEvent(event)
        around = self.parentWidget()
        while around is not None and not isinstance(around, QMainWindow):
            around = around.parentWidget()
        if around is not None:
            around.installEventFilter(self)

    def eventFilter(self, watched, event) -> bool:
        if event.type() == QEvent.Type.Close and isinstance(watched, QMainWindow) and not self.may_leave():
            event.ignore()
            return True
        return super().eventFilter(watched, event)

    # ------------------------------------------------------------------------------------------ inside

    def _stage(self, name: str) -> None:
        self._as_made()
        self.look.stage(name)
        self._down("Stage", list(STAGES).index(name))

    def _window(self, name: str) -> None:
        self.look.window(name)
        self._down("Window", WINDOWS.index(name))

    def _plane(self, name: str) -> None:
        self.look.plane(name)
        self._down("Plane", list(PLANES).index(name))
        self.jump()

    def _points(self) -> None:
        """The operating points of the case's forest, its own first; none where the result names none."""
        names, own = list(self.case.info.get("operating_points") or {}), self.case.info.get("operating_point")
        first = own if own in names else AS_MADE
        with QSignalBlocker(self.point):
            self.point.clear()
            self.point.addItems([first, *(name for name in names if name != first)])
        self.point_row.setVisible(bool(names))

    def _as_made(self) -> None:
        """Back to the operating point of the result."""
        if self.point.currentIndex() > 0:
            self.point.setCurrentIndex(0)

    def _point(self, name: str) -> None:
        """Show what the forest keeps at an operating point: in the table, and as labels above those of the result."""
        if self.case is None or not name:
            return
        made, chosen = self.case.lesions(), self.candidate()
        own, info = self.point.itemText(0), self.case.info
        for layer in [layer for layer in self.viewer.layers if layer.name.startswith(AT_POINT)]:
            self.viewer.layers.remove(layer)
        threshold = info.get("forest_threshold") if name == own else info["operating_points"][name]
        shown = made if name == own else made.assign(kept=worklist.kept_at(made, info, name))
        self.lesions = worklist.order(shown, threshold)
        if "labels" in self.viewer.layers:
            labels = self.viewer.layers["labels"]
            labels.visible = name == own and self.look.drawn is None
            if name != own and self.case.file("candidates").exists():
                numbers = self.case.volume("candidates")[0]
                before, kept = (set(table.candidate[table.kept]) for table in (made, self.lesions))
                data = worklist.labels_at(np.asarray(labels.data), numbers, before, kept)
                self.viewer.add_labels(
                    data, name=AT_POINT + name, colormap=dict(qa.LABEL_COLOURS), opacity=0.45, scale=labels.scale, units=labels.units
                )  # fmt: skip
        self._fill()
        if chosen is not None:
            self.table.selectRow(int(np.flatnonzero(self.lesions.candidate == chosen)[0]))

    def _down(self, which: str, number: int) -> None:
        self.sets[which].button(number).setChecked(True)

    def _put(self, do: Callable[[], verdicts.Review]) -> None:
        """Write a verdict and show it; what stands against it is said."""
        try:
            self.review = do()
        except (Refused, OSError) as error:
            self._say(str(error))
            return
        sha = verdicts.fingerprint(self.case.path)
        if sha != self.sha:
            self.show_case(self.shown_number())
            if self.sha == sha:  # not where painted labels held the reader back
                self._say("the result has changed on disk and is shown anew: look again")
            return
        self._say("")
        self._fill()

    def _fill(self) -> None:
        """The table and the line above it, the chosen row kept."""
        said, row = self.review.of(self.sha), self.table.currentRow()
        quiet = QSignalBlocker(self.table)
        self.table.setRowCount(len(self.lesions))
        for n, lesion in enumerate(self.lesions.itertuples()):
            verdict = said.get(int(lesion.candidate))
            words = [str(lesion.candidate), f"{lesion.forest_score:.2f}", _ml(lesion.volume_ml), f"{lesion.long_axis_mm:.0f}",
                     "kept" if lesion.kept else "rejected", MARKS[verdict.verdict] if verdict else ""]  # fmt: skip
            for column, word in enumerate(words):
                item = QTableWidgetItem(word)
                if 0 < column < 4:
                    item.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)
                if column == 5 and verdict:
                    item.setToolTip(f"{verdict.who}, {verdict.when}: {verdict.note or 'no note'}")
                self.table.setItem(n, column, item)
        if 0 <= row < len(self.lesions):
            self.table.selectRow(row)
        quiet.unblock()
        self._state()

    def _state(self) -> None:
        said = self.review.of(self.sha)
        judged = f"{len(said)} of {len(self.lesions)} lesions judged"
        words = [f"case {self.shown_number() + 1} of {len(self.places)}", judged]
        if self.review.corrected is not None:
            words.append(f"labels corrected by {self.review.corrected.who}")
        lines = [", ".join(words), self.review.outdated(self.sha)]
        lines += [f"no CT: {why}" for layer in self.viewer.layers[:1] if (why := layer.metadata.get("no_ct"))]
        self.state.setText("\n".join(filter(None, lines)))

    def _watch(self, layer: napari.layers.Labels) -> None:
        """What was painted is on record at the layer, for a panel that is opened later too."""
        layer.metadata[PAINTED] = False
        layer.events.paint.connect(lambda _: layer.metadata.update({PAINTED: True}))

    def _pick(self, number: int) -> None:
        with QSignalBlocker(self.choice):
            self.choice.setCurrentIndex(number)

    def _ask(self) -> None:
        if path := QFileDialog.getExistingDirectory(self, "A result folder, a folder of them, or an experiment"):
            try:
                self.open(path)
            except Refused as refused:
                self._say(str(refused))

    def _say(self, words: str) -> None:
        self.said.setText(words)
        if words:
            qa.log.warning(words)


def _lesion_table() -> QTableWidget:
    table = QTableWidget(0, len(COLUMNS))
    table.setHorizontalHeaderLabels(list(COLUMNS))
    for n, meaning in enumerate(COLUMNS.values()):
        table.horizontalHeaderItem(n).setToolTip(meaning)
    table.verticalHeader().hide()
    table.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
    table.horizontalHeader().setStretchLastSection(True)
    table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
    table.setSelectionMode(QAbstractItemView.SelectionMode.SingleSelection)
    table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
    table.setMinimumHeight(160)
    table.setToolTip(" ".join((worklist.order.__doc__ or "").split()))
    return table


def _ml(volume: float) -> str:
    """Two digits, more where they stand before the point."""
    return f"{volume:.0f}" if volume >= 10 else f"{volume:.2g}"


def _button(name: str, tip: str, do: Callable[[], object], width: int = 0) -> QPushButton:
    button = QPushButton(name)
    button.setToolTip(tip)
    button.clicked.connect(lambda _=False: do())
    button.setFocusPolicy(Qt.FocusPolicy.NoFocus)
    if width:
        button.setFixedWidth(width)
    return button


def _row(*widgets: QWidget) -> QHBoxLayout:
    row = QHBoxLayout()
    for widget in widgets:
        row.addWidget(widget)
    return row
