"""Industrial data sets."""

from zsad_jax.data.catalog.entry import Category, Entry

_UNSTATED = 'not stated (look at its page before you use it)'

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
    'mpdd': Entry(
        title='MPDD',
        homepage='https://github.com/stepanje/MPDD',
        archive='the MPDD folder (linked there)',
        sha256='',
        unpack="unzip '*.zip' (the download may come in parts: all six categories must be there)",
        tree='mpdd/<category>/{train/good,test/good,test/<defect>}/*.png\n'
             'mpdd/<category>/ground_truth/<defect>/*_mask.png',
        licence='CC BY-NC-SA 4.0',
        mask_threshold=0,
        remark='painted metal parts, several in a picture, in varied position and before varied backgrounds',
        tops=('MPDD',),
        categories={
            'bracket_black': Category('black metal bracket', 289, 32, 47),
            'bracket_brown': Category('brown metal bracket', 185, 26, 51),
            'bracket_white': Category('white metal bracket', 110, 30, 30),
            'connector': Category('connector', 128, 30, 14),
            'metal_plate': Category('metal plate', 54, 26, 71),
            'tubes': Category('metal tubes', 122, 32, 69),
        }),
    'btad': Entry(
        title='BTAD',
        homepage='http://avires.dimi.uniud.it/papers/btad/btad.zip',
        archive='btad.zip',
        sha256='461c9387e515bfed41ecaae07c50cf6b10def647b36c9e31d239ab2736b10d2a',
        unpack='unzip btad.zip',
        tree='btad/BTech_Dataset_transformed/{01,02,03}/{train/ok,test/ok,test/ko}/*.{bmp,png}\n'
             'btad/BTech_Dataset_transformed/{01,02,03}/ground_truth/ko/*.{bmp,png}',
        licence='CC BY-SA 4.0',
        mask_threshold=0,
        remark='three unnamed products; BMP and PNG mixed; normal is called ok, anomalous ko',
        tops=('BTech_Dataset_transformed',),
        totals={'': (1799, 451, 290)},       # the authors contradict the usual counts of 02 and 03
        categories={
            '01': Category('object', 400, 21, 49),
            '02': Category('object', 399, 30, 200),
            '03': Category('object', 1000, 400, 41),
        }),
    'kolektor_sdd': Entry(
        title='KolektorSDD',
        homepage='https://www.vicos.si/resources/kolektorsdd/',
        archive='KolektorSDD.zip',
        sha256='65dc621693418585de9c4467d1340ea7958a6181816f0dc2883a1e8b61f9d4dc',
        unpack='unzip KolektorSDD.zip',
        tree='kolektor_sdd/kos01/Part0.jpg\n'
             'kolektor_sdd/kos01/Part0_label.bmp\n'
             '... to kos50; or tiles that are cut already:\n'
             'kolektor_sdd/electrical commutators/{train/good,test/good,test/defect,ground_truth/defect}/*.png',
        licence='CC BY-NC-SA 4.0',
        mask_threshold=0,
        remark='thin cracks on strips of 500x1250 pixels, cut across into two tiles (halves), three (thirds) or not '
               '(full); no official split',
        markers=(*(f'kos{i:02}' for i in range(1, 51)), 'electrical commutators', 'electrical_commutators',
                 'ground_truth'),
        tops=('KolektorSDD', 'SDD'),
        # halves and thirds as used in papers, full by the same rule: a quarter of the normal images is test.
        totals={'halves': (543, 181, 74), 'thirds': (857, 286, 54), 'full': (260, 87, 52)},
        categories={'electrical_commutators': Category('electrical commutator', 543, 181, 74)}),
    'dagm2007': Entry(
        title='DAGM 2007',
        homepage='https://www.kaggle.com/datasets/mhskjelvareid/dagm-2007-competition-dataset-optical-inspection',
        archive='archive.zip',
        sha256='',
        unpack='unzip archive.zip',
        tree='dagm2007/DAGM_KaggleUpload/Class<n>/{Train,Test}/*.PNG\n'
             'dagm2007/DAGM_KaggleUpload/Class<n>/{Train,Test}/Label/*_label.PNG',
        licence=_UNSTATED,
        mask_threshold=0,
        masks='weak',
        remark='drawn textures; each mask is one generous ellipse around the defect',
        tops=('DAGM_KaggleUpload', 'DAGM2007', 'DAGM_anomaly_detection'),
        categories={
            'Class1': Category('texture', 496, 504, 71, texture=True),
            'Class10': Category('texture', 1000, 1000, 150, texture=True),
            'Class2': Category('texture', 509, 491, 84, texture=True),
            'Class3': Category('texture', 509, 491, 84, texture=True),
            'Class4': Category('texture', 493, 507, 68, texture=True),
            'Class5': Category('texture', 505, 495, 80, texture=True),
            'Class6': Category('texture', 492, 508, 67, texture=True),
            'Class7': Category('texture', 1000, 1000, 150, texture=True),
            'Class8': Category('texture', 1000, 1000, 150, texture=True),
            'Class9': Category('texture', 1000, 1000, 150, texture=True),
        }),
    'dtd_synthetic': Entry(
        title='DTD-Synthetic',
        homepage='https://drive.google.com/drive/folders/10OyPzvI3H6llCZBxKxFlKWt1Pw1tkMK1',
        archive='the DTD-Synthetic folder (Google Drive)',
        sha256='',
        unpack="unzip '*.zip'",
        tree='dtd_synthetic/<texture>/{train/good,test/good,test/<defect>}/*\n'
             'dtd_synthetic/<texture>/ground_truth/<defect>/*_mask.png',
        licence=_UNSTATED,
        mask_threshold=0,
        remark='defects drawn onto photographed textures of DTD, cut out at random positions and orientations',
        tops=('DTD-Synthetic',),
        totals={'': (None, 357, 947)},
        categories={
            name: Category(f'{name.split("_")[0].lower()} texture', None, None, None, texture=True)
            for name in ('Blotchy_099', 'Fibrous_183', 'Marbled_078', 'Matted_069', 'Mesh_114', 'Perforated_037',
                         'Stratified_154', 'Woven_001', 'Woven_068', 'Woven_104', 'Woven_125', 'Woven_127')}),
}
