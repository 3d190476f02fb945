"""The keys that belong to no single part of the engine: names of a run, method and networks."""

from edkd.keys import Key

KEYS = {
    "EXPERIMENT.PROJECT": Key(
        "distill",
        "folder of the run within LOG.PREFIX, and project in wandb",
        free_on_resume=True,
        names_run=False,
    ),
    "EXPERIMENT.NAME": Key(
        "",
        "folder of the run within the project; empty: TAG, and the keys of the command line",
        free_on_resume=True,
        names_run=False,
    ),
    "EXPERIMENT.TAG": Key(
        "default",
        "name of the run if NAME is empty; its parts are the tags in wandb",
        free_on_resume=True,
        names_run=False,
    ),
    "DISTILLER.TYPE": Key(
        "NONE", "method; NONE: the student alone; KD+DKD: the terms of both methods together"
    ),
    "DISTILLER.TEACHER": Key(
        "ResNet50",
        "model of the teacher, such as resnet56, torchvision/resnet50 or timm/resnet50.a1_in1k; a "
        "list for several",
        text_or_list=True,
    ),
    "DISTILLER.STUDENT": Key("resnet32", "model of the student, named in the same way"),
    "DISTILLER.TEACHER_CKPT": Key(
        "",
        "file with the teacher's weights, a list for several; empty: the published weights, or the "
        "library's pretrained ones",
        names_run=False,
        is_path=True,
        text_or_list=True,
    ),
    "DISTILLER.STUDENT_CKPT": Key(
        "",
        "initial weights of the student: a file; pretrained: the published or the library's; a "
        "list for several; empty: new weights",
        is_path=True,
        text_or_list=True,
    ),
    "DISTILLER.TEACHER_WEIGHTS": Key([], "weights of several teachers; empty: equal", low=0.0),
}
