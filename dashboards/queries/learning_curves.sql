-- How do the arms learn? Mean over the confirmation pairs, per epoch: log-loss, and CCC in regression.
SELECT study, arm, name, epoch, avg(value) AS value, count(*) AS runs
FROM epochs
WHERE phase = 'confirm' AND name IN ('validation/log_loss', 'validation/ccc')
GROUP BY study, arm, name, epoch
ORDER BY study, arm, name, epoch
