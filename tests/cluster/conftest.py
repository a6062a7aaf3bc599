from mmdistill.cluster.environment import prepare

# Ray reads its authentication mode once, when it is first imported, by whichever test that is.
prepare()
