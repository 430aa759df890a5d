"""The data sets of DataComp's suite: names, sizes and main metrics of its `tasklist.yml` of April 2025."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """How a set is measured."""

    CLASSIFICATION = "classification"
    RETRIEVAL = "retrieval"
    IWILDCAM = "iwildcam"
    CAMELYON17 = "camelyon17"
    FMOW = "fmow"
    DOLLAR_STREET = "dollar_street"
    GEODE = "geode"
    FACES = "faces"
    WINOGAVIL = "winogavil"


@dataclass(frozen=True, slots=True)
class Task:
    """One data set of the suite."""

    key: str
    name: str
    size: int  # images; of WinoGAViL instances
    main_metric: str | None = "acc1"
    kind: Kind = Kind.CLASSIFICATION
    also: tuple[str, ...] = ()  # what clip-benchmark calls it

    def folders(self) -> Iterator[str]:
        """Iterate over the folder names that are accepted: DataComp's, CLIP_benchmark's, plain ones."""
        last = self.key.rpartition("/")[2]
        for name in dict.fromkeys((self.key.replace("/", "-"), last, *self.also)):
            yield from (f"wds_{name}_test", f"wds_{name}", name)
        if last != self.key:
            yield self.key


_RECALL, _RETRIEVAL = "mean_per_class_recall", "mean_recall@1"

TASKS = (
    Task("vtab/caltech101", "Caltech-101", 6085, _RECALL),
    Task("cifar10", "CIFAR-10", 10_000, also=("vtab-cifar10",)),
    Task("vtab/cifar100", "CIFAR-100", 10_000),
    Task("vtab/clevr_count_all", "CLEVR Counts", 15_000),
    Task("vtab/clevr_closest_object_distance", "CLEVR Distance", 15_000),
    Task("country211", "Country211", 21_100),
    Task("vtab/dtd", "Describable Textures", 1880),
    Task("vtab/eurosat", "EuroSAT", 5400),
    Task("fgvc_aircraft", "FGVC Aircraft", 3333, _RECALL),
    Task("food101", "Food-101", 25_250),
    Task("gtsrb", "GTSRB", 12_630),
    Task("imagenet1k", "ImageNet 1k", 50_000),
    Task("imagenet_sketch", "ImageNet Sketch", 50_889),
    Task("imagenetv2", "ImageNet v2", 10_000),
    Task("imagenet-a", "ImageNet-A", 7500),
    Task("imagenet-o", "ImageNet-O", 2000),
    Task("imagenet-r", "ImageNet-R", 30_000),
    Task("vtab/kitti_closest_vehicle_distance", "KITTI Vehicle Distance", 711),
    Task("mnist", "MNIST", 10_000),
    Task("objectnet", "ObjectNet", 18_574),
    Task("vtab/flowers", "Oxford Flowers-102", 6149, _RECALL),
    Task("vtab/pets", "Oxford-IIIT Pet", 3669, _RECALL),
    Task("voc2007", "Pascal VOC 2007", 14_976),
    Task("vtab/pcam", "PatchCamelyon", 32_768),
    Task("renderedsst2", "Rendered SST2", 1821),
    Task("vtab/resisc45", "RESISC45", 6300),
    Task("cars", "Stanford Cars", 8041),
    Task("stl10", "STL-10", 8000),
    Task("sun397", "SUN397", 108_754),
    Task("vtab/svhn", "SVHN", 26_032),
    Task(
        "retrieval/flickr_1k_test_image_text_retrieval", "Flickr", 1000, _RETRIEVAL, Kind.RETRIEVAL,
        ("flickr30k",),
    ),
    Task(
        "retrieval/mscoco_2014_5k_test_image_text_retrieval", "MSCOCO", 5000, _RETRIEVAL, Kind.RETRIEVAL,
        ("mscoco_captions",),
    ),
    Task("wilds/camelyon17", "Camelyon17", 85_054, kind=Kind.CAMELYON17),
    Task("misc/winogavil", "WinoGAViL", 3563, "jaccard_score_10-12", Kind.WINOGAVIL),
    Task("wilds/iwildcam", "iWildCam", 42_791, "F1-macro_all", Kind.IWILDCAM),
    Task("wilds/fmow", "FMoW", 22_108, "acc_worst_region", Kind.FMOW),
    Task("fairness/dollar_street", "Dollar Street", 3503, "acc_top5_wg", Kind.DOLLAR_STREET),
    Task("fairness/geode", "GeoDE", 12_488, "acc_wg", Kind.GEODE),
    Task("fairness/fairface", "FairFace", 10_954, None, Kind.FACES),
    Task("fairness/utkface", "UTKFace", 23_703, None, Kind.FACES),
)  # fmt: skip

# Averages, by the names of their sets; that over all sets with a main metric is `AVERAGE`.
AVERAGE = "Average"
GROUPS: Mapping[str, frozenset[str]] = {
    "ImageNet": frozenset({"ImageNet 1k"}),
    "ImageNet dist. shifts": frozenset(
        {"ImageNet Sketch", "ImageNet v2", "ImageNet-A", "ImageNet-O", "ImageNet-R", "ObjectNet"}
    ),
    "VTAB": frozenset(
        {
            "Caltech-101", "CIFAR-100", "CLEVR Counts", "CLEVR Distance", "Describable Textures", "EuroSAT",
            "KITTI Vehicle Distance", "Oxford Flowers-102", "Oxford-IIIT Pet", "PatchCamelyon", "RESISC45",
            "SVHN", "SUN397",
        }
    ),
    "Retrieval": frozenset({"Flickr", "MSCOCO", "WinoGAViL"}),
    AVERAGE: frozenset(task.name for task in TASKS if task.main_metric is not None),
}  # fmt: skip
