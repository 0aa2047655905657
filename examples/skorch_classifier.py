"""As an estimator of scikit-learn, by skorch: a callback, whose strength a grid search tunes with the others.

The better of two strengths by cross-validation, trained on all training images: 4 times fewer weights. Accuracy is all
that this search looks for; it takes a strength so high that the gate stays closed, too.
"""

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split
from skorch import NeuralNetClassifier
from torch import nn

import strongreg
from strongreg.integrations.skorch import RegularizerCallback

EPOCHS, BATCH_SIZE = 20, 64

images, labels = load_digits(return_X_y=True)
x, x_test, y, y_test = train_test_split((images / 16).astype("float32"), labels, random_state=0)

torch.manual_seed(0)
# when to impose it; the second half of the steps refits the kept weights, in the search, with half of the images
refit = strongreg.Refit(start=EPOCHS // 2 * (len(x) // 2 // BATCH_SIZE))
net = NeuralNetClassifier(
    lambda: nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)),
    criterion=nn.CrossEntropyLoss,
    optimizer=torch.optim.SGD,
    optimizer__momentum=0.9,
    lr=0.05,
    max_epochs=EPOCHS,
    batch_size=BATCH_SIZE,
    iterator_train__shuffle=True,
    train_split=None,
    verbose=0,
    callbacks=[("strongreg", RegularizerCallback(strongreg.L1(1e-3), schedule=refit))],
)
strengths = [strongreg.L1(strength) for strength in (2e-3, 5e-3)]
search = GridSearchCV(net, {"callbacks__strongreg__penalty": strengths}, cv=2, scoring="accuracy").fit(x, y)

for strength, score in zip(strengths, search.cv_results_["mean_test_score"], strict=True):
    print(f"{strength}: accuracy {score:.1%}")
best = search.best_estimator_
print(dict(best.callbacks_)["strongreg"].regularizer_.summary())
print(f"test accuracy {best.score(x_test, y_test):.1%}")
