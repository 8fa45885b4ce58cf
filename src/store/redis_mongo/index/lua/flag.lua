-- Tenants that may have something in MongoDB that nobody knows of: each takes its turn to be read.
-- ARGV: now, lines, then for each: line, tenant.
local now, lines = tonumber(ARGV[1]), tonumber(ARGV[2])
if not epoch() then return 0 end
local rung = false
for i = 3, #ARGV, 2 do
  local given_up_at = tonumber(redis.call('ZSCORE', of(ARGV[i], 'reading'), ARGV[i + 1]) or 0)
  -- By a clock that is wrong it is read for ever.
  if tonumber(ARGV[i]) < lines and (given_up_at <= now or given_up_at > now + 10000) then
    rung = take_turn(ARGV[i], ARGV[i + 1]) or rung
  end
end
if rung then ring() end
return 1
