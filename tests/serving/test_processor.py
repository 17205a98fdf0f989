"""A composed model's processor gives each specialist what its own processor would give it."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import submerge
from _images import FORMS, write_image
from _processors import RATE, assert_same, composed, image, llava, own_processor, sound, tokenizer, tokens_of
from submerge.calibrate import open_image
from submerge.serving import ModalityProcessor
from submerge.serving._specialist_processor import SpecialistProcessor

transformers = pytest.importorskip("transformers")

MASKED = ("input_ids", "attention_mask")
AUDIO = "<|audio_bos|><|AUDIO|><|audio_eos|>"


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> ModalityProcessor:
    """One for images, sounds and depth maps, of which the first and the last have inputs of one name."""
    return submerge.load_processor(composed(tmp_path_factory.mktemp("out"), ["image", "audio", "depth"]))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> ModalityProcessor:
    """One for images and sounds."""
    return submerge.load_processor(composed(tmp_path_factory.mktemp("pair"), ["image", "audio"]))


# --- one specialist ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "images"),
    [
        ("what is <image>?", image(0)),
        (["<image>"], [Image.fromarray(image(0))]),
        ("<image> and\n<image>", [image(0), image(1, 30, 16)]),
        (["a <image>", "two <image> <image>"], [image(0), image(1), image(2)]),
        (["a <image>", "two <image> <image>"], [[image(0)], [image(1), image(2)]]),
    ],
)
def test_images_are_as_their_own_processor_has_them(pair: ModalityProcessor, texts: Any, images: Any) -> None:
    own = own_processor("image")
    options = {"padding": True, "return_tensors": "pt"}
    theirs = own(images=images, text=texts, **options)
    assert_same(pair(text=texts, images=images, **options), pair.tokenizer, theirs, own.tokenizer)


@pytest.mark.parametrize("count", [1, 2])
def test_sounds_are_as_their_own_processor_has_them(pair: ModalityProcessor, count: int) -> None:
    own = own_processor("audio")
    texts = ["hear " + AUDIO * count, f"and {AUDIO} too"]
    sounds = [sound(number, 0.2 + 0.1 * number) for number in range(count + 1)]
    options = {"padding": True, "padding_side": "left", "return_tensors": "pt", "sampling_rate": RATE}
    theirs = own(audio=sounds, text=texts, **options)
    assert_same(pair(text=texts, audio=sounds, **options), pair.tokenizer, theirs, own.tokenizer)


def test_a_modality_of_any_name_is_an_argument_and_its_shared_names_tell_it_apart(
    processor: ModalityProcessor,
) -> None:
    own = own_processor("depth")
    maps = [image(0, 20, 40), image(1, 40, 20)]
    theirs = own(images=maps, text="<depth> on <depth>", return_tensors="pt")
    ours = processor(text="<depth> on <depth>", depth=maps, return_tensors="pt")
    names = {"pixel_values": "depth_pixel_values", "image_sizes": "depth_image_sizes"}
    assert set(names.values()) < set(processor.model_input_names)
    renamed = {name: name for name in theirs} | {n: names[n] for n in names if names[n] in ours}
    assert_same(ours, processor.tokenizer, theirs, own.tokenizer, renamed)


class FramesOfBytes:
    """Stands for a video processor, of which transformers has none without torchvision."""

    model_input_names = ("pixel_values_videos",)

    def __call__(self, videos: Any, **_: Any) -> dict[str, Any]:
        frames = [torch.tensor(np.stack(video)).permute(0, 3, 1, 2) for video in videos]
        return {"pixel_values_videos": torch.stack(frames).float()}


class VideoProcessor(transformers.VideoLlavaProcessor):
    def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> Any:
        return type(argument)


def specialist(name: str, kind: str, own: Any, placeholder: str, names: Sequence[str]) -> SpecialistProcessor:
    number = own.tokenizer.convert_tokens_to_ids(placeholder)
    return SpecialistProcessor(name, kind, placeholder, number, own, {key: key for key in names})


def test_a_class_of_two_kinds_does_not_see_the_other_specialists_inputs() -> None:
    shared = tokenizer(["<video>", "<image>"])
    own = VideoProcessor(None, FramesOfBytes(), shared, patch_size=8)
    movies = specialist("video", "video", own, "<video>", ["pixel_values_videos"])
    both = ModalityProcessor(
        shared, [movies, specialist("image", "image", llava(shared), "<image>", ["pixel_values"])], ""
    )
    video = [image(0, 16, 16), image(1, 16, 16)]
    ours = both(text="<video> or <image>", videos=[video], images=image(2), return_tensors="pt")
    alone = own(text="<video> or ", videos=[video])
    assert tokens_of(shared, ours)[0] == [*tokens_of(shared, alone)[0], *["<image>"] * 5]
    assert torch.equal(ours["pixel_values_videos"], alone["pixel_values_videos"])


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "I;16", "mixed"])
def test_frames_of_pillow_have_the_channels_of_arrays(mode: str) -> None:
    shared = tokenizer(["<video>"])
    own = VideoProcessor(None, FramesOfBytes(), shared, patch_size=8)
    movies = specialist("video", "video", own, "<video>", ["pixel_values_videos"])
    processor = ModalityProcessor(shared, [movies], "")
    grey = [Image.fromarray(image(n, 16, 16)).convert("L") for n in range(2)]
    arrays = [np.asarray(frame.convert("RGB")) for frame in grey]
    frames = [frame if mode == "I;16" else frame.convert("L" if mode == "mixed" else mode) for frame in grey]
    if mode == "I;16":
        frames = [Image.fromarray(np.asarray(frame).astype(np.uint16) << 8) for frame in grey]
    if mode == "mixed":
        frames[1] = frames[1].convert("P")
    for count in (1, 2):
        text = "<video>" * count
        found = processor(text=text, videos=[frames] * count, return_tensors="pt")
        expected = processor(text=text, videos=[arrays] * count, return_tensors="pt")
        assert torch.equal(found["pixel_values_videos"], expected["pixel_values_videos"])


# --- several -----------------------------------------------------------------------------------------------


def test_all_of_them_in_any_order_are_what_each_would_write(processor: ModalityProcessor) -> None:
    own = {name: own_processor(name) for name in ("image", "audio", "depth")}
    parts = [
        ("audio", f"hear {AUDIO}", {"audio": [sound(0)], "sampling_rate": RATE}),
        ("image", " see <image>", {"images": image(0)}),
        ("depth", " far <depth>", {"images": image(1, 20, 40)}),
        ("image", " and <image>", {"images": image(2)}),
    ]
    expected = [
        token
        for name, text, inputs in parts
        for token in tokens_of(own[name].tokenizer, own[name](text=[text], **inputs))[0]
    ]
    text = "".join(text for _, text, _ in parts)
    ours = processor(
        text=text,
        images=[image(0), image(2)],
        audio=sound(0),
        depth=image(1, 20, 40),
        return_tensors="pt",
        sampling_rate=RATE,
    )
    assert tokens_of(processor.tokenizer, ours) == [expected]
    assert ours["input_features"].shape[0] == 1
    assert set(ours) <= set(processor.model_input_names)


def test_a_batch_has_texts_with_any_subset(processor: ModalityProcessor) -> None:
    texts = ["alone", "see <image>", f"{AUDIO} <image>", "<depth>"]
    ours = processor(
        text=texts,
        images=[[], [image(0)], [image(1)], []],
        audio=[sound(0)],
        depth=[image(2)],
        padding=True,
        return_tensors="pt",
        sampling_rate=RATE,
    )
    rows = [
        processor(text=texts[0]),
        processor(text=texts[1], images=image(0)),
        processor(text=texts[2], images=[image(1)], audio=[sound(0)], sampling_rate=RATE),
        processor(text=texts[3], depth=[image(2)]),
    ]
    for number, row in enumerate(rows):
        kept = ours["attention_mask"][number].bool()
        assert ours["input_ids"][number][kept].tolist() == row["input_ids"][0]


def test_text_alone_is_the_tokenizers(processor: ModalityProcessor) -> None:
    texts = ["a b", "longer text"]
    ours = processor(text=texts, padding="max_length", max_length=20, truncation=True)
    theirs = processor.tokenizer(texts, padding="max_length", max_length=20, truncation=True)
    assert dict(ours) == dict(theirs)
    assert processor.decode(ours["input_ids"][0]) == processor.tokenizer.decode(theirs["input_ids"][0])
    assert processor.batch_decode(ours["input_ids"]) == processor.tokenizer.batch_decode(theirs["input_ids"])


@pytest.mark.parametrize("inside", [False, True])
def test_options_go_to_the_processors_that_know_them(pair: ModalityProcessor, inside: bool) -> None:
    small = {"crop_size": {"height": 8, "width": 8}}
    options: dict[str, Any] = {"images_kwargs": small} if inside else small
    outputs = pair(text="<image>", images=image(0), return_tensors="pt", **options)
    assert outputs["pixel_values"].shape[-2:] == (8, 8)
    assert tokens_of(pair.tokenizer, outputs) == [["<image>"] * 2]


def test_a_processor_that_looks_for_another_text_than_the_token_of_a_feature() -> None:
    """Aya Vision's writes `<|IMG_PATCH|>`, which its model puts features at, in the place of `<image>`."""
    patch, around = "<|IMG_PATCH|>", ["<|START_OF_IMG|>", "<|END_OF_IMG|>", "TILE_1", "TILE_GLOBAL"]
    shared = tokenizer(["<image>", patch, *around])
    encoder = transformers.GotOcr2ImageProcessor(size={"height": 32, "width": 32}, crop_to_patches=False)
    own = transformers.AyaVisionProcessor(encoder, shared, patch_size=8, img_size=32, downsample_factor=2)
    ours = ModalityProcessor(shared, [specialist("image", "image", own, patch, ["pixel_values"])], "")
    images = [image(0), image(1)]
    outputs = ours(text=f"a {patch} b {patch}", images=images, return_tensors="pt")
    theirs = own(text="a <image> b <image>", images=images, return_tensors="pt")
    assert outputs.keys() == theirs.keys()
    assert all(torch.equal(outputs[name], theirs[name]) for name in theirs)
    assert (outputs["input_ids"] == shared.convert_tokens_to_ids(patch)).sum() == 2 * 4


def test_a_processor_that_counts_texts_sees_those_of_its_own_inputs() -> None:
    shared = tokenizer(["<sound>"])
    own = transformers.AudioFlamingo3Processor(
        transformers.WhisperFeatureExtractor(feature_size=4, chunk_length=1), shared
    )
    names = ["input_features", "input_features_mask"]
    ours = ModalityProcessor(shared, [specialist("audio", "audio", own, "<sound>", names)], "")
    texts, sounds = ["a <sound>", "b", "<sound> c"], [sound(0, 0.3), sound(1)]
    outputs = ours(text=texts, audio=sounds, padding=True, return_tensors="pt")
    theirs = own(text=texts[::2], audio=sounds)
    kept = [row[mask.bool()].tolist() for row, mask in zip(*map(outputs.get, MASKED), strict=True)]
    alone = [row[mask.bool()].tolist() for row, mask in zip(*map(theirs.get, MASKED), strict=True)]
    assert kept == [alone[0], shared("b")["input_ids"], alone[1]]
    assert all(torch.equal(outputs[name], theirs[name]) for name in names)


def test_a_sound_may_be_a_list_of_its_values(pair: ModalityProcessor) -> None:
    values = sound(0).tolist()
    forms = (values, [values], [[values]], list(sound(0)))
    outputs = [pair(text=AUDIO, audio=own, sampling_rate=RATE) for own in forms]
    assert len({str(one["input_ids"]) for one in outputs}) == 1


def test_sounds_may_be_tensors_and_arrays_of_one_channel(pair: ModalityProcessor) -> None:
    first, second = sound(0), sound(1, 0.3)
    options = {"text": AUDIO * 2, "sampling_rate": RATE, "return_tensors": "pt"}
    expected = pair(audio=[first, second], **options)
    tensors = pair(audio=[torch.from_numpy(first), torch.from_numpy(second)], **options)
    channels = pair(audio=[first[None], torch.from_numpy(second)[:, None]], **options)
    for outputs in (tensors, channels):
        assert all(torch.equal(outputs[name], expected[name]) for name in expected)


@pytest.mark.parametrize("form", FORMS)
def test_images_of_files_and_of_pillow_are_read_as_calibration_reads_them(
    form: str, pair: ModalityProcessor, tmp_path: Path
) -> None:
    file, own = write_image(tmp_path, form), own_processor("image")
    inner = own.image_processor(open_image(file, own, ""), return_tensors="pt")["pixel_values"]
    encoded = base64.b64encode(file.read_bytes()).decode()
    opened = Image.open(file)
    for given in (file, str(file), f"file://{file}", opened, encoded, f"data:image/any;base64,{encoded}"):
        assert torch.equal(pair(text="<image>", images=given, return_tensors="pt")["pixel_values"], inner)
    found = pair(text="<image> <image>", images=[[file, opened]], return_tensors="pt")
    assert torch.equal(found["pixel_values"], inner.repeat(2, 1, 1, 1))


# --- refused -----------------------------------------------------------------------------------------------

DEEP = Image.fromarray(np.full((9, 9), 70_000, np.int32))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"text": "<image> <image>", "images": image(0)}, "2 <image> in the text, 1 image given"),
        ({"text": "no image", "images": image(0)}, "0 <image> in the text, 1 image given"),
        ({"text": f"{AUDIO}"}, "1 <|AUDIO|> in the text, 0 audio given"),
        ({"text": "a", "videos": [image(0)]}, "no specialist for videos; there are images, audio, depth"),
        ({"text": "a", "thermal": [image(0)]}, "thermal is neither a modality of the model nor an option"),
        ({"text": "<image>", "images": "https://a.org/b.png"}, "no file is fetched from the net"),
        (
            {"text": "<image>", "images": "missing.png"},
            "the image missing.png cannot be read ([Errno 2]",
        ),
        (
            {"text": "<image>", "images": "missing"},
            "modality image: the image missing cannot be read (there is no such file, and",
        ),
        (
            {"text": AUDIO, "audio": np.zeros((2, 800))},
            "a sound has the shape [2, 800], and processors take one",
        ),
        ({"text": AUDIO, "audio": [np.zeros(800, np.int16)]}, "a sound has values of int16 — give floats"),
        ({"text": AUDIO, "audio": [0, 300, -20] * 99}, "a sound has values of int64 — give floats"),
        ({"text": "<image>", "images": DEEP}, "the image given cannot be read (its values have neither 8"),
        ({"images": image(0)}, "text is a string or a list of strings"),
        ({"text": [["a", "b"]]}, "text is a string or a list of strings"),
        ({"text": 3}, "text is a string or a list of strings"),
        (
            {"text": ["<image> <image>", "a"], "images": [[image(0)], [image(1)]]},
            "each text has [2, 0] <image>, and its list [1, 1] image",
        ),
        ({"text": "<image>", "images": [[image(0)], []]}, "each text has [1] <image>, and its list [1, 0]"),
        (
            {"text": "<image>", "images": image(0), "truncation": True, "max_length": 3},
            "5 tokens <image> in the text, 3 in its ids",
        ),
    ],
)
def test_what_is_wrong_is_told(processor: ModalityProcessor, call: dict[str, Any], message: str) -> None:
    with pytest.raises(submerge.RequestError) as caught:
        processor(**call)
    assert message in str(caught.value)


def test_all_numbers_that_differ_are_told_at_once(processor: ModalityProcessor) -> None:
    with pytest.raises(submerge.RequestError) as caught:
        processor(text=f"<image>{AUDIO}")
    assert len(caught.value.problems) == 2


def test_a_call_that_fails_leaves_the_specialists_processor_as_it_was(processor: ModalityProcessor) -> None:
    own = processor.specialists["audio"].processor
    before = own.tokenizer
    with pytest.raises(
        submerge.RequestError, match="modality audio: Qwen2AudioProcessor refuses the inputs: T"
    ):
        processor(text=AUDIO, audio=sound(0), sampling_rate=8_000)
    assert own.tokenizer is before


def test_a_processor_that_takes_no_sound_beside_text_is_named() -> None:
    shared = tokenizer(["<sound>"])
    own = transformers.VoxtralProcessor(
        transformers.WhisperFeatureExtractor(feature_size=4, chunk_length=1), shared
    )
    with pytest.raises(submerge.RequestError, match="VoxtralProcessor takes no audio beside texts"):
        ModalityProcessor(shared, [specialist("audio", "audio", own, "<sound>", [])], "")(
            text="<sound>", audio=sound(0)
        )


def test_it_shows_what_it_is_made_of(processor: ModalityProcessor) -> None:
    shown = repr(processor)
    assert shown.startswith("ModalityProcessor(image: LlavaProcessor, audio: Qwen2AudioProcessor, depth: ")
    assert processor.chat_template == processor.tokenizer.chat_template


def test_a_missing_processor_is_told_with_its_folder(tmp_path: Path) -> None:
    folder = composed(tmp_path, ["image", "audio"])
    for file in (folder / "modalities" / "audio").iterdir():
        file.unlink()
    with pytest.raises(submerge.RequestError, match=r"modalities/audio: the processor cannot be loaded"):
        submerge.load_processor(folder)
    (folder / "modalities" / "audio").rmdir()
    with pytest.raises(submerge.RequestError, match=r"modalities/audio: there is no such folder"):
        submerge.load_processor(folder)


# --- saved -------------------------------------------------------------------------------------------------


def test_saved_and_loaded_it_gives_the_same(processor: ModalityProcessor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path / "copy")
    again = submerge.load_processor(tmp_path / "copy")
    assert again.modalities == ("image", "audio", "depth")
    call = {
        "text": f"{AUDIO} <image> <depth>",
        "images": image(0),
        "audio": sound(0),
        "depth": image(1),
        "return_tensors": "pt",
        "sampling_rate": RATE,
    }
    first, second = processor(**call), again(**call)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    messages = [{"role": "user", "content": [{"type": "audio"}, {"type": "image"}]}]
    assert again.apply_chat_template(messages) == processor.apply_chat_template(messages)
    assert len(transformers.AutoTokenizer.from_pretrained(tmp_path / "copy")) == len(processor.tokenizer)
