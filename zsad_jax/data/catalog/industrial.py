"""Industrial data sets."""

from zsad_jax.data.catalog.entry import Category, Entry

ENTRIES = {
    'mvtec_ad': Entry(
        title='MVTec AD',
        homepage='https://www.mvtec.com/company/research/datasets/mvtec-ad',
        archive='mvtec_anomaly_detection.tar.xz',
        sha256='cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d',
        unpack='tar -xJf mvtec_anomaly_detection.tar.xz',
        tree='mvtec_ad/<category>/{train/good,test/good,test/<defect>}/*.png\n'
             'mvtec_ad/<category>/ground_truth/<defect>/*_mask.png',
        licence='CC BY-NC-SA 4.0',
        mask_threshold=0,
        categories={
            'bottle': Category('bottle', 209, 20, 63),
            'cable': Category('cable', 224, 58, 92),
            'capsule': Category('capsule', 219, 23, 109),
            'carpet': Category('carpet', 280, 28, 89, texture=True),
            'grid': Category('grid', 264, 21, 57, texture=True),
            'hazelnut': Category('hazelnut', 391, 40, 70),
            'leather': Category('leather', 245, 32, 92, texture=True),
            'metal_nut': Category('metal nut', 220, 22, 93),
            'pill': Category('pill', 267, 26, 141),
            'screw': Category('screw', 320, 41, 119),
            'tile': Category('tile', 230, 33, 84, texture=True),
            'toothbrush': Category('toothbrush', 60, 12, 30),
            'transistor': Category('transistor', 213, 60, 40),
            'wood': Category('wood', 247, 19, 60, texture=True),
            'zipper': Category('zipper', 240, 32, 119),
        }),
    'visa': Entry(
        title='VisA',
        homepage='https://github.com/amazon-science/spot-diff',
        archive='VisA_20220922.tar',
        sha256='2eb8690c803ab37de0324772964100169ec8ba1fa3f7e94291c9ca673f40f362',
        unpack='tar -xf VisA_20220922.tar',
        tree='visa/split_csv/1cls.csv\n'
             'visa/<object>/Data/Images/{Normal,Anomaly}/*.JPG\n'
             'visa/<object>/Data/Masks/Anomaly/*.png',
        licence='CC BY 4.0',
        mask_threshold=0,          # masks hold class indices 1, 2, ..., not 255
        categories={
            'candle': Category('candle', 900, 100, 100),
            'capsules': Category('capsules', 542, 60, 100),
            'cashew': Category('cashew', 450, 50, 100),
            'chewinggum': Category('chewing gum', 453, 50, 100),
            'fryum': Category('fryum', 450, 50, 100),
            'macaroni1': Category('macaroni', 900, 100, 100),
            'macaroni2': Category('macaroni', 900, 100, 100),
            'pcb1': Category('printed circuit board', 904, 100, 100),
            'pcb2': Category('printed circuit board', 901, 100, 100),
            'pcb3': Category('printed circuit board', 905, 101, 100),
            'pcb4': Category('printed circuit board', 904, 101, 100),
            'pipe_fryum': Category('pipe fryum', 450, 50, 100),
        }),
}
