"""Architectures by name: how each is built, with random weights, and random inputs for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

Build = Callable[[], nn.Module]
Inputs = Callable[[int], Any]
RANDOM = torch.Generator().manual_seed(0)
WORDS, TOKENS = 500, 24
TEXT = {"vocab_size": WORDS, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
BERT = {**TEXT, "intermediate_size": 128, "max_position_embeddings": 64}


def images(pixels: int, channels: int = 3) -> Inputs:
    return lambda count: torch.randn(count, channels, pixels, pixels, generator=RANDOM)


def numbers(*shape: int) -> Inputs:
    return lambda count: torch.randn(count, *shape, generator=RANDOM)


def texts(count: int) -> dict[str, Tensor]:
    ids = torch.randint(3, WORDS, (count, TOKENS), generator=RANDOM)
    mask = (torch.arange(TOKENS) < torch.randint(6, TOKENS + 1, (count, 1), generator=RANDOM)).long()
    return {"input_ids": ids * mask, "attention_mask": mask}


def by_name(name: str, inputs: Inputs) -> Inputs:
    return lambda count: {name: inputs(count)}


def torchvision(name: str, **arguments: Any) -> Build:
    def build() -> nn.Module:
        from torchvision import models

        return models.get_model(name, weights=None, **arguments)

    return build


def timm(name: str, **arguments: Any) -> Build:
    def build() -> nn.Module:
        import timm as zoo

        return zoo.create_model(name, pretrained=False, num_classes=10, **arguments)

    return build


def transformers(model: str, config: str, **arguments: Any) -> Build:
    def build() -> nn.Module:
        import transformers as zoo

        return getattr(zoo, model)(getattr(zoo, config)(**arguments))

    return build


class EncoderOf(nn.Module):
    """The encoder of a network that has a decoder too."""

    def __init__(self, build: Build) -> None:
        super().__init__()
        self.encoder = build().get_encoder()

    def forward(self, *args: Tensor, **named: Tensor) -> Any:
        return self.encoder(*args, **named)


def encoder_of(build: Build) -> Build:
    return lambda: EncoderOf(build)


class UNet(nn.Module):
    """Two scales, a transposed convolution and a concatenation; 4 classes a pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = self._block(3, 16), self._block(16, 32)
        self.up, self.last = nn.ConvTranspose2d(32, 16, 2, stride=2), self._block(32, 16)
        self.head = nn.Conv2d(16, 4, 1)

    @staticmethod
    def _block(inside: int, out: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inside, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU())

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        first = self.down1(x)
        second = self.down2(nn.functional.max_pool2d(first, 2))
        return {"out": self.head(self.last(torch.cat([first, self.up(second)], 1)))}


class Yolo(nn.Module):
    """A trunk with CSP blocks, two scales, and maps of boxes and classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = self._conv(3, 16, 2), self._conv(16, 32, 2), self._conv(32, 64, 2)
        self.left, self.right, self.join = self._conv(64, 32), self._conv(64, 32), self._conv(64, 64)
        self.lateral = self._conv(96, 32)
        self.heads = nn.ModuleList([nn.Conv2d(64, 3 * 9, 1), nn.Conv2d(32, 3 * 9, 1)])

    @staticmethod
    def _conv(inside: int, out: int, stride: int = 1) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inside, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.SiLU())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.first(self.stem(x))
        coarse = self.second(fine)
        coarse = self.join(torch.cat([self.left(coarse), self.right(coarse)], 1))
        fine = self.lateral(torch.cat([fine, nn.functional.interpolate(coarse, scale_factor=2.0)], 1))
        return self.heads[0](coarse), self.heads[1](fine)


class Crnn(nn.Module):
    """Text in images: convolutions, then a bidirectional LSTM over the columns; logits for every column."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
            nn.MaxPool2d((2, 1)),
        )  # fmt: skip
        self.lstm, self.head = nn.LSTM(32 * 4, 32, batch_first=True, bidirectional=True), nn.Linear(64, 20)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convs(x).flatten(1, 2).transpose(1, 2)
        return self.head(self.lstm(x)[0])


class Recurrent(nn.Module):
    """A recurrent layer and numbers, or probabilities, from its last state."""

    def __init__(self, kind: str, out: int) -> None:
        super().__init__()
        self.rnn, self.head = getattr(nn, kind)(8, 48, num_layers=2, batch_first=True), nn.Linear(48, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Autoencoder(nn.Module):
    """Transposed convolutions; an image in, an image out."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 3, 4, 2, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Video(nn.Module):
    """3-d convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(3, 16, 3, padding=1), nn.BatchNorm3d(16), nn.ReLU(), nn.Conv3d(16, 32, 3, 2, 1), nn.ReLU()
        )
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(x).mean((2, 3, 4)))


class Temporal(nn.Module):
    """Dilated causal convolutions over time."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [nn.Conv1d(8 if step == 0 else 24, 24, 3, dilation=2**step, padding=2**step) for step in range(4)]
        )
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = torch.relu(conv(x))
        return self.head(x.mean(2))


class Points(nn.Module):
    """PointNet: a network shared by all points, their maximum, and classes."""

    def __init__(self) -> None:
        super().__init__()
        self.points = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 64), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.points(x).amax(1))


class Attention(nn.Module):
    """torch's own transformer encoder."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


class Tabular(nn.Module):
    """Numbers and categories to one number."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds = nn.Embedding(20, 8)
        self.layers = nn.Sequential(nn.Linear(10 + 8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, values: Tensor, kind: Tensor) -> Tensor:
        return self.layers(torch.cat([values, self.kinds(kind)], 1))


class HeadsOf(nn.Module):
    """A detector of torchvision up to its heads: what comes after is no network but sorting."""

    def __init__(self, build: Build) -> None:
        super().__init__()
        model: Any = build()
        self.backbone, self.head = model.backbone, model.head

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = self.head(list(self.backbone(x).values()))
        return found["cls_logits"], found["bbox_regression"]


class LastFlow(nn.Module):
    """Optical flow in two refinements, of which the last counts."""

    def __init__(self) -> None:
        super().__init__()
        self.raft = torchvision("raft_small")()

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return self.raft(first, second, num_flow_updates=2)[-1]


def heads_of(name: str, **arguments: Any) -> Build:
    return lambda: HeadsOf(torchvision(name, weights_backbone=None, **arguments))


VISION = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
SPEECH = {
    **VISION, "conv_dim": (32, 32, 32), "conv_stride": (5, 4, 4), "conv_kernel": (10, 8, 4),
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
}  # fmt: skip

IMAGES: dict[str, tuple[Build, Inputs]] = {
    "resnet18": (torchvision("resnet18"), images(64)),
    "densenet121": (torchvision("densenet121"), images(64)),
    "mobilenet_v3_small": (torchvision("mobilenet_v3_small"), images(64)),
    "shufflenet_v2_x0_5": (torchvision("shufflenet_v2_x0_5"), images(64)),
    "efficientnet_b0": (torchvision("efficientnet_b0"), images(64)),
    "regnet_y_400mf": (torchvision("regnet_y_400mf"), images(64)),
    "squeezenet1_1": (torchvision("squeezenet1_1"), images(64)),
    "googlenet": (torchvision("googlenet", aux_logits=False, init_weights=False), images(64)),
    "convnext": (timm("convnext_atto"), images(64)),
    "vit": (timm("vit_tiny_patch16_224", img_size=64), images(64)),
    "swin": (timm("swin_tiny_patch4_window7_224", img_size=56, embed_dim=24, depths=(1, 1, 2), num_heads=(1, 2, 4)),
             images(56)),
    "mixer": (timm("mixer_s32_224", img_size=64, num_blocks=3), images(64)),
    "mobilevit": (timm("mobilevit_xxs"), images(64)),
    "levit": (timm("levit_128s"), images(224)),
    "edgenext": (timm("edgenext_xx_small"), images(64)),
    "repvgg": (timm("repvgg_a0"), images(64)),
    "ghostnet": (timm("ghostnet_050"), images(64)),
    "mobilenetv4": (timm("mobilenetv4_conv_small"), images(64)),
    "poolformer": (timm("poolformer_s12"), images(64)),
    "hf_vit": (transformers("ViTForImageClassification", "ViTConfig", **VISION, image_size=32, patch_size=8,
                            num_labels=5), by_name("pixel_values", images(32))),
    "dinov2": (transformers("Dinov2Model", "Dinov2Config", hidden_size=64, num_hidden_layers=2, num_attention_heads=4,
                            image_size=28, patch_size=14), by_name("pixel_values", images(28))),
    "clip_vision": (transformers("CLIPVisionModel", "CLIPVisionConfig", **VISION, image_size=32, patch_size=8),
                    by_name("pixel_values", images(32))),
}  # fmt: skip
DENSE: dict[str, tuple[Build, Inputs]] = {
    "lraspp": (torchvision("lraspp_mobilenet_v3_large", weights_backbone=None, num_classes=21), images(64)),
    "fcn": (torchvision("fcn_resnet50", weights_backbone=None, num_classes=5), images(32)),
    "segformer": (transformers("SegformerForSemanticSegmentation", "SegformerConfig", hidden_sizes=[16, 32, 48, 64],
                               depths=[1, 1, 1, 1], decoder_hidden_size=32, num_labels=5),
                  by_name("pixel_values", images(64))),
    "unet": (UNet, images(32)),
    "yolo": (Yolo, images(64)),
    "ssdlite320": (heads_of("ssdlite320_mobilenet_v3_large"), images(96)),
    "raft_small": (LastFlow, lambda count: (images(128)(count), images(128)(count))),
    "autoencoder": (Autoencoder, images(32)),
}  # fmt: skip
TEXTS: dict[str, tuple[Build, Inputs]] = {
    "bert": (transformers("BertForSequenceClassification", "BertConfig", **BERT, num_labels=3), texts),
    "bert_tokens": (transformers("BertForTokenClassification", "BertConfig", **BERT, num_labels=5), texts),
    "distilbert": (transformers("DistilBertForSequenceClassification", "DistilBertConfig", vocab_size=WORDS, dim=64,
                                n_layers=2, n_heads=4, hidden_dim=128, max_position_embeddings=64), texts),
    "albert": (transformers("AlbertForSequenceClassification", "AlbertConfig", **BERT, embedding_size=32), texts),
    "roberta": (transformers("RobertaForSequenceClassification", "RobertaConfig", **BERT), texts),
    "deberta": (transformers("DebertaV2ForSequenceClassification", "DebertaV2Config", **BERT, relative_attention=True,
                             pos_att_type=["p2c", "c2p"], type_vocab_size=0), texts),
    "electra": (transformers("ElectraForSequenceClassification", "ElectraConfig", **BERT, embedding_size=32), texts),
    "mpnet": (transformers("MPNetModel", "MPNetConfig", **BERT), texts),
    "t5_encoder": (transformers("T5EncoderModel", "T5Config", vocab_size=WORDS, d_model=64, d_kv=16, d_ff=128,
                                num_layers=2, num_heads=4), texts),
    "clip_text": (transformers("CLIPTextModel", "CLIPTextConfig", vocab_size=WORDS, hidden_size=64, num_hidden_layers=2,
                               num_attention_heads=4, intermediate_size=128, max_position_embeddings=64,
                               eos_token_id=2),
                  texts),
    "gpt2": (transformers("GPT2ForSequenceClassification", "GPT2Config", vocab_size=WORDS, n_embd=64, n_layer=2,
                          n_head=4, n_positions=64, pad_token_id=0), texts),
    "llama": (transformers("LlamaForSequenceClassification", "LlamaConfig", **BERT, num_key_value_heads=2,
                           pad_token_id=0), texts),
}  # fmt: skip
SPEECH_AND_SEQUENCES: dict[str, tuple[Build, Inputs]] = {
    "wav2vec2": (transformers("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", **SPEECH, vocab_size=32),
                 by_name("input_values", numbers(4000))),
    "hubert": (transformers("HubertForSequenceClassification", "HubertConfig", **SPEECH, vocab_size=32),
               by_name("input_values", numbers(4000))),
    "whisper_encoder": (encoder_of(transformers("WhisperModel", "WhisperConfig", vocab_size=WORDS, d_model=64,
                                                encoder_layers=2, decoder_layers=1, encoder_attention_heads=4,
                                                decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=64,
                                                max_source_positions=50, num_mel_bins=20, pad_token_id=0)),
                        by_name("input_features", numbers(20, 100))),
    "ast": (transformers("ASTForAudioClassification", "ASTConfig", **VISION, max_length=64, num_mel_bins=32),
            by_name("input_values", numbers(64, 32))),
    "crnn": (Crnn, lambda count: torch.randn(count, 1, 16, 64, generator=RANDOM)),
    "gru_regressor": (lambda: Recurrent("GRU", 1), numbers(20, 8)),
    "lstm_vad": (lambda: Recurrent("LSTM", 2), numbers(20, 8)),
    "temporal_convolutions": (Temporal, numbers(8, 64)),
}  # fmt: skip
OTHERS: dict[str, tuple[Build, Inputs]] = {
    "transformer_encoder": (Attention, numbers(12, 32)),
    "pointnet": (Points, numbers(64, 3)),
    "video": (Video, numbers(3, 6, 16, 16)),
    "tabular": (Tabular, lambda count: {"values": torch.randn(count, 10, generator=RANDOM),
                                        "kind": torch.randint(20, (count,), generator=RANDOM)}),
}  # fmt: skip
KINDS = {
    "Images": IMAGES,
    "Segmentation, detection and other dense outputs": DENSE,
    "Text": TEXTS,
    "Speech and sequences": SPEECH_AND_SEQUENCES,
    "Others": OTHERS,
}
ARCHITECTURES = {name: parts for kind in KINDS.values() for name, parts in kind.items()}
