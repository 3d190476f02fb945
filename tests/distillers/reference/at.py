"""Attention transfer (arXiv:1612.03928), a sum over stages, images and positions."""

import math


def at(features_student, features_teacher, power):
    """The maps of a pair have heights and widths of which the smaller divides the larger."""
    total = 0.0
    for student, teacher in zip(features_student, features_teacher, strict=True):
        height = min(len(student[0][0]), len(teacher[0][0]))
        width = min(len(student[0][0][0]), len(teacher[0][0][0]))
        of_stage = 0.0
        for image_student, image_teacher in zip(student, teacher, strict=True):
            q_s = attention(image_student, height, width, power)
            q_t = attention(image_teacher, height, width, power)
            of_stage += sum((a - b) ** 2 for a, b in zip(q_s, q_t, strict=True))
        total += of_stage / (len(student) * height * width)
    return total


def attention(image, height, width, power):
    """Q / |Q| of an image (channels, height, width), given as nested lists."""
    pooled = [pool(channel, height, width) for channel in image]
    q = [sum(abs(channel[j]) ** power for channel in pooled) for j in range(height * width)]
    norm = math.sqrt(sum(value**2 for value in q))
    return [value / norm for value in q]


def pool(channel, height, width):
    """Means over the cells of a grid of height * width cells, row by row."""
    rows = len(channel) // height
    columns = len(channel[0]) // width
    means = []
    for i in range(height):
        for j in range(width):
            cell = [
                channel[i * rows + y][j * columns + x] for y in range(rows) for x in range(columns)
            ]
            means.append(sum(cell) / len(cell))
    return means
