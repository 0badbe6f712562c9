"""TensorBoard's event files. Reference: tensorboardX, which writes them without TensorBoard being installed."""

import time
from pathlib import Path
from typing import Any

from dltrain.trackers.lines import Line, figures, flat

FLUSH_SECONDS = 5.0  # between two: each waits for the disk, some milliseconds


class TensorBoard:
    """Event files in tensorboard/ of the run's folder: curves, hyperparameters, pictures of mistakes."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        # Here, not above: a run without it shall not wait for its import.
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary
        from tensorboardX.record_writer import RecordWriter

        self.event, self.summary = Event, Summary
        self.config = flat(config)
        own = folder / "tensorboard"
        own.mkdir(exist_ok=True)
        for old in own.glob("*.tfevents.*"):  # a resumed run's are made anew, from metrics.jsonl
            old.unlink()
        # The plain writer: SummaryWriter has a queue and a thread for what takes 30 us, and puts the host's name into
        # that of the file.
        self.file = RecordWriter(str(own.absolute() / f"events.out.tfevents.{time.time():.0f}.dltrain"))
        self.file.write(Event(wall_time=time.time(), file_version="brain.Event:2").SerializeToString())
        self.flushed = time.monotonic()

    def write(self, line: Line) -> None:
        """One event with all figures of a record."""
        values = [self.summary.Value(tag=tag, simple_value=value) for tag, value in figures(line).items()]
        self._add(self.summary(value=values), line["step"])
        if time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.file.flush()
            self.flushed = time.monotonic()

    def _add(self, summary: Any, step: int) -> None:
        self.file.write(self.event(wall_time=time.time(), step=step, summary=summary).SerializeToString())

    def saved(self) -> None:
        pass  # what is lost with the buffer is made anew when the run is resumed

    def finish(self, summary: dict[str, Any], mistakes: list[tuple[Any, str]]) -> None:
        """Hyperparameters beside the final figures; pictures, uint8 (C, H, W), each with its title."""
        from tensorboardX.summary import hparams, image

        step = summary["steps"]
        final = {f"{split}/{key}": value for split in ("val", "test") for key, value in (summary[split] or {}).items()}
        for part in hparams(self.config, final):
            self._add(part, step)
        for index, (picture, title) in enumerate(mistakes):
            shown = image(f"mistakes/{index:02}", picture)
            shown.value[0].metadata.display_name = title
            self._add(shown, step)
        self.file.flush()

    def close(self) -> None:
        self.file.close()
