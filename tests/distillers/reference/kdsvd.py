"""Singular vectors (arXiv:1807.06819) in the form of mdistiller, image by image with NumPy."""

import numpy as np


def kdsvd(features_student, features_teacher, k):
    """The maps are arrays (N,D,H,W), of equal H and W in a stage."""
    total = 0.0
    for n in range(len(features_student[0])):
        before = None
        for student, teacher in zip(features_student, features_teacher, strict=True):
            now = vectors_of_stage(student[n], teacher[n], k)
            if before is not None:
                total += distance(now, before)
            before = now
    return total / len(features_student[0])


def vectors_of_stage(student, teacher, k):
    """The teacher's first k right singular vectors, and the student's nearest; both weighted."""
    _, values, vectors_teacher = np.linalg.svd(teacher.reshape(-1, teacher.shape[2]))
    _, _, vectors_student = np.linalg.svd(student.reshape(-1, student.shape[2]))
    weights = values[:k] / np.linalg.norm(values[:k])

    found = []
    for c in range(min(k, len(values))):
        v_t = vectors_teacher[c] * (-1.0 if vectors_teacher[c].sum() < 0 else 1.0)
        cosines = [float(np.dot(v_s, v_t)) for v_s in vectors_student[: k + 3]]
        best = max(range(len(cosines)), key=lambda m: abs(cosines[m]))
        v_s = vectors_student[best] * (1.0 if cosines[best] > 0 else -1.0)
        found.append((weights[c] * v_s, weights[c] * v_t))
    return found


def distance(now, before):
    """Between the kernels of the student and those of the teacher."""
    total = 0.0
    for (v_s, v_t), (u_s, u_t) in zip(now, before, strict=False):
        for i in range(len(v_s)):
            for j in range(len(u_s)):
                r_s = np.exp(-((v_s[i] - u_s[j]) ** 2) / 8)
                r_t = np.exp(-((v_t[i] - u_t[j]) ** 2) / 8)
                total += (r_s - r_t) ** 2
    return total
