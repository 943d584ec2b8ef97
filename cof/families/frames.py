"""Where an original lies in the native coordinates of the boxes that a family writes.

Every function takes the original's `(width, height)` and the family's image processor. Families
without one write boxes on their dialect's scale of the whole image.
"""

from __future__ import annotations

from typing import Any

from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from cof.geometry.boxes import Frame


def padded_square(image_wh: tuple[int, int], image_processor: Any) -> Frame:
    """Fractions of the image padded to a square about its centre."""
    return Frame.padded_square(image_wh)


def clip(image_wh: tuple[int, int], image_processor: Any) -> Frame:
    """Padded square, centre crop or whole image, as the processor's options say."""
    if getattr(image_processor, "do_pad", False):
        return Frame.padded_square(image_wh)
    if image_processor.do_center_crop and image_processor.size.get("shortest_edge"):
        return Frame.centre_crop(image_wh)
    return Frame.of_image()


def qwen_pixels(image_wh: tuple[int, int], image_processor: Any) -> Frame:
    """Pixels of the image that the processor has resized."""
    width, height = image_wh
    resized_height, resized_width = smart_resize(
        height,
        width,
        factor=image_processor.patch_size * image_processor.merge_size,
        min_pixels=image_processor.size["shortest_edge"],
        max_pixels=image_processor.size["longest_edge"],
    )
    return Frame.pixels((resized_width, resized_height))
