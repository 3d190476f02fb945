"""Every default of the configuration; the hyper-parameters of a method stand beside its class, as `defaults`.

Facts: the published defaults of mdistiller, whose YAML files merge into these keys unchanged.
"""

from yacs.config import CfgNode

from edkd.distillers import distiller_dict
from edkd.distillers._base import place
from edkd.errors import UserError

CFG = CfgNode()

CFG.EXPERIMENT = CfgNode()
CFG.EXPERIMENT.PROJECT = "distill"  # folder of the run below LOG.PREFIX, and the project in wandb
CFG.EXPERIMENT.NAME = ""  # folder of the run below the project; empty: TAG
CFG.EXPERIMENT.TAG = "default"  # names the run where NAME is empty; its parts are the tags in wandb

CFG.DATASET = CfgNode()
CFG.DATASET.TYPE = "cifar100"  # key of dataset_dict
CFG.DATASET.ROOT = ""  # folder that holds cifar-*/, or an image folder's train/ and val/; empty: see data/README.md
CFG.DATASET.NUM_WORKERS = 2  # processes that read image folders; 0: the main process reads
CFG.DATASET.WORKER_TIMEOUT = 300.0  # seconds after which a process that reads image folders counts as hanging
CFG.DATASET.VAL_SPLIT = 0.0  # share of the training images held out to choose the best epoch by; 0: the test set
CFG.DATASET.TEST = CfgNode()
CFG.DATASET.TEST.BATCH_SIZE = 0  # images in a batch of evaluation; 0: small ones as suits the device, folders' 64

CFG.DISTILLER = CfgNode()
CFG.DISTILLER.TYPE = "NONE"  # key of distiller_dict; NONE: the student alone
CFG.DISTILLER.TEACHER = "ResNet50"  # key of the data set's dictionary of models
CFG.DISTILLER.STUDENT = "resnet32"  # key of the data set's dictionary of models
CFG.DISTILLER.TEACHER_CKPT = ""  # weights of the teacher; empty: the published ones below download_ckpts/

CFG.SOLVER = CfgNode()
CFG.SOLVER.TRAINER = "base"  # key of trainer_dict
CFG.SOLVER.SEED = 1  # of the weights, the order of the images, their views
CFG.SOLVER.BATCH_SIZE = 64  # images in a step
CFG.SOLVER.EPOCHS = 240  # passes over the training images
CFG.SOLVER.TYPE = "SGD"  # SGD | Adam | AdamW
CFG.SOLVER.LR = 0.05  # learning rate at its highest
CFG.SOLVER.SCHEDULE = "step"  # step | cosine (to 0)
CFG.SOLVER.LR_DECAY_STAGES = [150, 180, 210]  # step: epochs after which the rate falls
CFG.SOLVER.LR_DECAY_RATE = 0.1  # step: factor of each fall
CFG.SOLVER.WARMUP_EPOCHS = 0  # epochs over which the rate grows linearly, step by step
CFG.SOLVER.WEIGHT_DECAY = 0.0001  # of all parameters, as published
CFG.SOLVER.MOMENTUM = 0.9  # SGD
CFG.SOLVER.NESTEROV = False  # SGD
CFG.SOLVER.BETAS = [0.9, 0.999]  # Adam, AdamW
CFG.SOLVER.CLIP_GRAD_NORM = 0.0  # largest norm of the gradient of all parameters together; 0: not clipped
CFG.SOLVER.AMP = "auto"  # auto | off | bf16 | fp16; auto: bf16 where the hardware has it natively
CFG.SOLVER.CHECKPOINT_MINUTES = 10.0  # time between checkpoints within an epoch, which is all a crash costs; 0: none
CFG.SOLVER.DETERMINISTIC = False  # the same bits in each run on CUDA too; refuses what has no such form there
CFG.SOLVER.CUDA_GRAPH = False  # replay the whole step as one CUDA graph

CFG.TEACHER_MEMO = CfgNode()
CFG.TEACHER_MEMO.ENABLED = True  # remember the teacher's logits where views are numbered and a method needs no more
CFG.TEACHER_MEMO.FOLDER = ""  # folder of all memos, which runs share; empty: teacher_memo/ in LOG.PREFIX
CFG.TEACHER_MEMO.DTYPE = "auto"  # auto | fp32 | bf16 | fp16, of a stored logit; auto: as the teacher computes
CFG.TEACHER_MEMO.MAX_GB = 20.0  # size of that folder in 1e9 bytes, past which nothing is added to it

CFG.LOG = CfgNode()
CFG.LOG.PREFIX = "./output"  # folder of all runs
CFG.LOG.TENSORBOARD_FREQ = 500  # steps between the points of the training curves; 0: epochs only
CFG.LOG.SAVE_CHECKPOINT_FREQ = 40  # epochs between the numbered checkpoints; 0: none
CFG.LOG.KEEP = 0  # numbered checkpoints that are kept, the newest; 0: all
CFG.LOG.WANDB = True  # log to wandb too; offline where there are no credentials


def with_methods(cfg: CfgNode) -> CfgNode:
    """A copy of `cfg` in which each registered method has its node.

    Raises:
        UserError: a node written by hand contradicts the `defaults` of the class; the message names both places.
    """
    cfg = cfg.clone()
    for name, cls in distiller_dict.items():
        try:
            node = CfgNode(cls.defaults)
        except AssertionError as error:  # yacs's word for a value that YAML cannot hold
            raise UserError(f"defaults of {cls.__name__} in {place(cls)}: {error}") from None
        if name in cfg and cls.defaults and cfg[name] != node:
            raise UserError(
                f"CFG.{name} is {dict(cfg[name])} in {__file__} but {dict(node)} in the defaults of {cls.__name__} "
                f"in {place(cls)}; keep one of them"
            )
        if cls.defaults:
            cfg[name] = node
    return cfg


CFG = with_methods(CFG)
