"""The picture of the speed can be read."""

from benchmarks import _picture, _workloads


def test_numbers_of_the_picture_are_inside_of_its_frame():
    ratios = {"mean": 0.9, "by hand": 7955.0}
    figure = _picture.plot(
        [
            {"workload": workload, "name": name, "side": "ours", "ratio": ratio}
            for workload in _workloads.NAMES
            for name, ratio in ratios.items()
        ]
    )
    figure.draw_without_rendering()
    for axes in figure.axes:
        for text in axes.texts:
            assert text.get_window_extent().x1 < axes.bbox.x1
