"""FitNet, VID, OFD and ReviewKD in plain Python, one number at a time, from the papers' equations.

Maps are nested lists [n][c][h][w] of floats.
"""

import math
from itertools import product


def entries(maps):
    """The indices (n, c, h, w) of all entries."""
    return product(
        range(len(maps)), range(len(maps[0])), range(len(maps[0][0])), range(len(maps[0][0][0]))
    )


def fitnet(regressed, hint):
    """Romero et al., equation 3, averaged instead of halved."""
    total = 0.0
    count = 0
    for n, c, h, w in entries(hint):
        total += (hint[n][c][h][w] - regressed[n][c][h][w]) ** 2
        count += 1
    return total / count


def vid(mean, hint, log_scale, eps):
    """Ahn et al., equations 4 to 6: -log q(t|s) without log sqrt(2 pi), averaged."""
    total = 0.0
    count = 0
    for n, c, h, w in entries(hint):
        variance = math.log(1 + math.exp(log_scale[c])) + eps
        deviation = math.sqrt(variance)
        total += math.log(deviation)
        total += (hint[n][c][h][w] - mean[n][c][h][w]) ** 2 / (2 * variance)
        count += 1
    return total / count


def margin(weight, bias):
    """Heo et al., equation 5: the mean of the negative part of a normal distribution."""
    deviation = abs(weight)
    share = 0.5 * math.erfc(bias / deviation / math.sqrt(2))
    if share <= 0.001:
        return -3 * deviation
    density = math.exp(-((bias / deviation) ** 2) / 2) / math.sqrt(2 * math.pi)
    return bias - deviation * density / share


def ofd(student, teacher, margins):
    """Heo et al., equations 2 to 4: a sum over the entries, a mean over the images."""
    total = 0.0
    for n, c, h, w in entries(teacher):
        s = student[n][c][h][w]
        t = teacher[n][c][h][w]
        if t < margins[c]:
            t = margins[c]
        if s <= t <= 0:
            continue
        total += (s - t) ** 2
    return total / len(teacher)


def pooled(maps, cells):
    """The means over cells x cells, whose borders may overlap, as in adaptive pooling."""
    height = len(maps[0][0])
    width = len(maps[0][0][0])
    result = []
    for image in maps:
        result.append([])
        for channel in image:
            rows = []
            for i, j in product(range(cells), range(cells)):
                row_range = range(i * height // cells, -(-(i + 1) * height // cells))
                column_range = range(j * width // cells, -(-(j + 1) * width // cells))
                values = [channel[h][w] for h in row_range for w in column_range]
                rows.append(sum(values) / len(values))
            result[-1].append([rows[k * cells : (k + 1) * cells] for k in range(cells)])
    return result


def hcl(students, teachers):
    """Chen et al., section 3.3, with the weights of the published code."""
    total = 0.0
    for student, teacher in zip(students, teachers, strict=True):
        levels = [(1.0, student, teacher)]
        weight = 1.0
        for cells in (4, 2, 1):
            if cells < len(teacher[0][0]) and cells < len(teacher[0][0][0]):
                weight /= 2
                levels.append((weight, pooled(student, cells), pooled(teacher, cells)))
        weights = sum(weight for weight, _, _ in levels)
        total += sum(weight * fitnet(s, t) for weight, s, t in levels) / weights
    return total
