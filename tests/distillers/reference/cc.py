"""Correlation congruence as in RepDistiller: neighbours of the batch, number by number."""


def cc(student, teacher):
    """The embeddings of a batch are lists of lists."""
    total = 0.0
    for n in range(len(student) - 1):
        for d in range(len(student[n])):
            total += abs(student[n][d] - teacher[n][d]) * abs(student[n + 1][d] - teacher[n + 1][d])
    return total / (len(student) - 1)
