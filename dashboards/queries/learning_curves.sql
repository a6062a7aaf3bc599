-- How do the arms learn? Mean over the complete confirmation runs, per epoch: log-loss, and CCC in regression.
SELECT study, arm, name, epoch, avg(value) AS value, count(*) AS runs
FROM epochs
WHERE phase = 'confirm' AND name IN ('validation/log_loss', 'validation/ccc')
  AND trial_id IN (SELECT trial_id FROM trials WHERE status = 'complete')
GROUP BY study, arm, name, epoch
ORDER BY study, arm, name, epoch
