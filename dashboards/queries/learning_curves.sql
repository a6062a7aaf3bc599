-- Mean validation log-loss per epoch over the confirmation pairs.
SELECT arm, epoch, avg(value) AS log_loss, count(*) AS runs
FROM epochs
WHERE phase = 'confirm' AND name = 'validation/log_loss'
GROUP BY arm, epoch
ORDER BY arm, epoch
