"""TensorBoard event files, written by tensorboardX, which does not need TensorBoard."""

import functools
import time
from pathlib import Path
from typing import Any

from dltrain.report.trackers.lines import Line, Tracker, flat, metrics

# Between two flushes: each waits for the disk, some milliseconds. A checkpoint needs none: what is lost with the buffer
# is written again on resume.
FLUSH_SECONDS = 5.0


class TensorBoard(Tracker):
    """Event files in tensorboard/ of the run's folder: curves, hyperparameters, images of mistakes."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self.config, self.folder = flat(config), folder / "tensorboard"
        self.folder.mkdir(exist_ok=True)
        for old in self.folder.glob("*.tfevents.*"):  # a resumed run writes them again from metrics.jsonl
            old.unlink()
        self.flushed = time.monotonic()

    @functools.cached_property
    def file(self) -> Any:
        """The event file, created by the first event so that the import does not delay the first step."""
        from tensorboardX.proto.event_pb2 import Event

        # The plain writer: SummaryWriter has a queue and a thread for what takes 30 us, and puts the host name into the
        # name of the file.
        from tensorboardX.record_writer import RecordWriter

        file = RecordWriter(str(self.folder.absolute() / f"events.out.tfevents.{time.time():.0f}.dltrain"))
        file.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        return file

    def write(self, line: Line) -> None:
        """Write one event with all metrics of a record."""
        from tensorboardX.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in metrics(line).items()]
        self._add(Summary(value=values), line["step"])
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.file.flush()
            self.flushed = time.monotonic()

    def _add(self, summary: Any, step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self.file.write(Event(wall_time=time.time(), step=step, summary=summary).SerializeToString())

    def finish(self, summary: dict[str, Any], mistakes: list[tuple[Any, str]]) -> None:
        """Write the hyperparameters with the final metrics, and images, uint8 (C, H, W), each with its title."""
        from tensorboardX.summary import hparams, image

        step = summary["steps"]
        final = {f"{split}/{key}": value for split in ("val", "test") for key, value in (summary[split] or {}).items()}
        for part in hparams(self.config, final):
            self._add(part, step)
        for index, (pixels, title) in enumerate(mistakes):
            shown = image(f"mistakes/{index:02}", pixels)
            shown.value[0].metadata.display_name = title
            self._add(shown, step)
        self.file.flush()

    def close(self) -> None:
        if "file" in self.__dict__:
            self.file.close()
