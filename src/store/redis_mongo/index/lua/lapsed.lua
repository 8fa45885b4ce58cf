-- Gives the caller the entries whose leases have lapsed. It fences the old workers off in MongoDB, then releases the entries.
-- The caller measures leases by its own clock. It remembers when it made which look, and names one that is a lease ago: entries that were
-- leased then to the worker that still has them have lapsed.
-- ARGV: now, lines, consumer, epoch, look (what was leased before this one of that index has lapsed; 0: nothing has).
-- Gives: epoch, the number of this look (what is leased now was leased before it), then for each: line, entry, id.
local lines, consumer = tonumber(ARGV[2]), ARGV[3]
local name = epoch_of_this_run()
if not name then return {'', '0'} end
even_when_full()
local look, any_leased = name == ARGV[4] and tonumber(ARGV[5]) or 0, false
local answer = {name, ''}

-- The names of entries of a line that this worker has leased since before that look.
local function lapsed(line, worker)
  if look == 0 then return {} end
  local time = redis.call('TIME')
  local idle = time[1] * 1000 + math.floor(time[2] / 1000) - (look * LOOK - LOOK / 2)
  local names = {}
  for _, pending in ipairs(redis.call('XPENDING', of(line, 'jobs'), GROUP, 'IDLE', number(idle), '-', '+', 256, worker)) do
    names[#names + 1] = pending[1]
  end
  return names
end

for line = 0, lines - 1 do
  local stream = of(line, 'jobs')
  -- Worker by worker: what was given back waits as long as it has to, and may be much.
  for _, worker in ipairs(redis.call('XINFO', 'CONSUMERS', stream, GROUP)) do
    local who, leased = worker[2], worker[4]
    if leased > 0 and who ~= FREE then
      any_leased = true
      for _, entry in ipairs(lapsed(line, who)) do
        local entries = redis.call('XCLAIM', stream, GROUP, consumer, '0', entry)
        if not entries[1] then redis.call('XACK', stream, GROUP, entry) end
        for _, one in ipairs(ours(line, entries)) do
          lease(line, {one[1]}, consumer)
          redis.call('HSET', index, one[2][2], leased_at(line, one[1], consumer))
          answer[#answer + 1] = tostring(line)
          answer[#answer + 1] = one[1]
          answer[#answer + 1] = one[2][2]
        end
      end
    elseif leased == 0 and worker[6] > 3600000 then
      -- Workers that have gone leave their names behind.
      redis.call('XGROUP', 'DELCONSUMER', stream, GROUP, who)
    end
  end
  redis.call('ZREMRANGEBYSCORE', of(line, 'resting'), '-inf', ARGV[1])
end
-- While nothing is leased, the number need not grow.
answer[2] = tostring(any_leased and redis.call('HINCRBY', state, 'looks', 1) or redis.call('HGET', state, 'looks'))
return answer
