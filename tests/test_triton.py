"""A model repository for Triton: its config by Triton's published schema, and what the server would do with it.

There is no Triton server here. `Server` does what the documentation of its sequence batcher with implicit state says.
"""

import numpy as np
import pytest
import torch
from conftest import in_process
from google.protobuf import text_format
from test_export_stream import conv3d_run, recurrent_run
from test_stream import CPU, trained
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig
from tritonclient.utils import triton_to_np_dtype

from stvid.cli import main
from stvid.deploy.stream import Stream
from stvid.errors import InputError
from stvid.export.stream_form import stream_form
from stvid.export.triton import triton_config, write_triton_model
from stvid.inference import ModelRunner
from stvid.run.checkpoint import load_checkpoint

FPS = 12


def numpy_type(data_type):
    return triton_to_np_dtype(DataType.Name(data_type).removeprefix("TYPE_"))


def parsed(form):
    return text_format.Parse(triton_config(form), ModelConfig())


class Server:
    """The sequence batcher of Triton: one state for each sequence, zeros at its start, any sequences in one batch."""

    def __init__(self, folder):
        import onnxruntime

        self.config = text_format.Parse((folder / "config.pbtxt").read_text(encoding="utf-8"), ModelConfig())
        self.session = onnxruntime.InferenceSession(folder / "1" / "model.onnx", providers=["CPUExecutionProvider"])
        self.sequences = {}

    def infer(self, requests):
        """Requests `(sequence, start, inputs)`, each of another sequence and of batch 1 -> the outputs of each."""
        states = self.config.sequence_batching.state
        assert len(requests) <= self.config.max_batch_size
        for sequence, start, inputs in requests:
            assert {spec.name for spec in self.config.input} == set(inputs)
            for spec in self.config.input:
                assert (inputs[spec.name].dtype, inputs[spec.name].shape) == (
                    numpy_type(spec.data_type),
                    (1, *spec.dims),
                )
            if start:
                zeros = [state.initial_state[0] for state in states]
                assert all(zero.zero_data for zero in zeros)
                self.sequences[sequence] = [np.zeros((1, *z.dims), numpy_type(z.data_type)) for z in zeros]
        feeds = {name: np.concatenate([inputs[name] for *_, inputs in requests]) for name in requests[0][2]}
        for i, state in enumerate(states):
            feeds[state.input_name] = np.concatenate([self.sequences[sequence][i] for sequence, *_ in requests])
        names = [output.name for output in self.session.get_outputs()]
        outputs = dict(zip(names, self.session.run(None, feeds), strict=True))
        for row, (sequence, *_) in enumerate(requests):
            self.sequences[sequence] = [outputs[state.output_name][[row]] for state in states]
        return [{spec.name: outputs[spec.name][row] for spec in self.config.output} for row in range(len(requests))]


@pytest.fixture(scope="module")
def repository(run_folder, tmp_path_factory):
    """A repository with the model of the run, and what the command printed."""
    folder = tmp_path_factory.mktemp("triton") / "models"
    done = in_process(["stvid", "export", run_folder, "--triton", folder], main)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_command_writes_a_model_named_as_the_run(run_folder, repository):
    folder, out = repository
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    name = run_folder.name
    assert files == [f"{name}/1/model.onnx", f"{name}/config.pbtxt", f"{name}/labels.txt"]
    assert (folder / name / "labels.txt").read_text() == "to_left\nto_right\n"
    assert "videos of the run's val split, batch 1 and 4" in out
    assert "written to" in out


def test_the_server_has_the_answers_of_three_streams_that_start_and_end_at_different_times(run_folder, repository):
    """The second stream begins later, the third one ends and begins again; single requests and batches alternate."""
    run = load_checkpoint(run_folder)
    server = Server(repository[0] / run_folder.name)
    size, stride = run.clip.size, run.clip.frame_stride
    period = server.config.input[0].dims[0]
    rng = np.random.default_rng(0)
    videos = (255 * rng.random((3, 100, *size, 3)) * rng.random((3, 100, 1, 1, 3))).astype(np.uint8)
    streams, position, num_answers = {}, {}, 0
    rounds = [[0], [0, 2], [0, 2], [1], [2, 0, 1], [1], [2], [0, 1, 2], [1, 0]]
    for number, sequences in enumerate(rounds):
        requests = []
        for sequence in sequences:
            start = sequence not in streams or (sequence == 2 and number == 6)
            if start:
                streams[sequence] = Stream(run, fps=FPS, runner=ModelRunner(run, device=CPU))
                position[sequence] = 0
            t = position[sequence]
            frames = videos[sequence, t : t + period]  # those that the clip's stride selects
            requests.append((sequence, start, {"frames": frames[None]}))
        for (sequence, _, inputs), answer in zip(requests, server.infer(requests), strict=True):
            before = streams[sequence].probabilities_K
            for frame in inputs["frames"][0]:
                wanted = streams[sequence].push(frame)
                for _ in range(stride - 1):  # frames between them, which the model does not see
                    wanted = streams[sequence].push(np.zeros_like(frame))
            position[sequence] += period
            assert answer["valid"].tolist() == [wanted is not None]
            if wanted is not None:
                num_answers += 1
                assert before is None or not torch.equal(before, wanted)
                torch.testing.assert_close(torch.from_numpy(answer["probabilities"]), wanted, atol=1e-4, rtol=0)
    assert num_answers == 8


@pytest.mark.parametrize("pooling", ["last", "attention"])
def test_the_config_says_what_the_form_takes_and_gives(tmp_path, pooling):
    for run in (conv3d_run(tmp_path), recurrent_run(tmp_path, pooling=pooling, input="diff")):
        form = stream_form(run)
        config, specs = parsed(form), {spec.name: spec for spec in (*form.inputs, *form.outputs)}
        states = config.sequence_batching.state
        names = [*(spec.name for spec in config.input), *(state.input_name for state in states)]
        assert names == [spec.name for spec in form.inputs]
        names = [*(spec.name for spec in config.output), *(state.output_name for state in states)]
        assert names == [spec.name for spec in form.outputs]
        shapes = [(spec.name, spec.data_type, spec.dims) for spec in (*config.input, *config.output)]
        for state in states:
            (zero,) = state.initial_state
            shapes += [(state.input_name, state.data_type, state.dims), (state.output_name, zero.data_type, zero.dims)]
        for name, data_type, dims in shapes:
            spec = specs[name]
            assert list(dims) == list(spec.shape[1:])
            assert numpy_type(data_type) == spec.zeros(batch=1).numpy().dtype
        assert config.output[0].label_filename == "labels.txt"
        assert config.sequence_batching.WhichOneof("strategy_choice") == "oldest"
        assert config.sequence_batching.max_sequence_idle_microseconds == 60e6


def test_states_and_their_outputs_have_the_same_alphabetical_order(tmp_path):
    """Triton 25.12 assigns outputs to states by it: issue 8586 of triton-inference-server/server."""
    for run in (conv3d_run(tmp_path), recurrent_run(tmp_path, pooling="attention")):
        states = sorted(parsed(stream_form(run)).sequence_batching.state, key=lambda state: state.input_name)
        outputs = [state.output_name for state in states]
        assert len(outputs) >= 5
        assert outputs == sorted(outputs)


def test_a_model_without_state_needs_no_sequences(tmp_path):
    config = parsed(stream_form(recurrent_run(tmp_path, recurrent="none", pooling="last")))
    assert config.HasField("dynamic_batching")
    assert not config.HasField("sequence_batching")


def test_a_model_that_exists_is_not_replaced_and_one_that_fails_leaves_nothing(tmp_path):
    form, names = stream_form(conv3d_run(tmp_path)), ["a", "b\x1b[2J", "c"]
    folder = tmp_path / "models" / "one"

    def fail(path):
        path.write_text("half")
        raise InputError("differs")

    def fill_the_disk(path):
        raise OSError(28, "No space left on device", str(path))

    with pytest.raises(InputError, match="differs"):
        write_triton_model(folder, form, names, fail)
    with pytest.raises(OSError, match="No space left") as caught:
        write_triton_model(folder, form, names, fill_the_disk)
    assert caught.value.filename == str(folder)
    assert list(tmp_path.iterdir()) == []
    assert write_triton_model(folder, form, names, lambda path: path.write_text("x")) == 1
    assert (folder / "labels.txt").read_text() == "a\nb\\x1b[2J\nc\n"
    with pytest.raises(InputError, match="one exists already and is not replaced"):
        write_triton_model(folder, form, names, lambda path: path.write_text("new"))
    assert (folder / "1" / "model.onnx").read_text() == "x"
    assert list(folder.parent.iterdir()) == [folder]


def test_a_bidirectional_run_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"bidirectional.*model\.bidirectional=false, or export the clip form"):
        stream_form(trained(tmp_path, bidirectional=True))
